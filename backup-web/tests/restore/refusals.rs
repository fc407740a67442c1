//! What cannot be done is refused with one sentence, before anything is changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags};
use xtask::mount::Mount;
use xtask::testbed::Customer;

use crate::world::{World, chown, names};

#[test]
fn what_cannot_be_restored_is_refused_in_one_sentence() {
    let mut world = World::new(&[1, 12]);
    let db = world.back_up("1 --type db");
    let files = world.back_up("1 --type files");
    let homeless = world.bed.add_customer(7).unwrap();
    let of_homeless = world.back_up("7 --type db");
    let gone = world.bed.scratch().join("gone");
    fs::rename(&homeless.directory, &gone).unwrap();
    let unchanged = world.evidence();
    let other_end = if db.ends_with('0') { '1' } else { '0' };
    for (line, status, said) in [
        ("restore 1 junk --yes", 2, "64 hexadecimal digits"),
        ("restore 1 ../../../etc --yes", 2, "64 hexadecimal digits"),
        ("restore 1 $(id) --yes", 2, "64 hexadecimal digits"),
        ("restore 1 latest --yes", 2, "64 hexadecimal digits"),
        ("restore 1 0123456 --yes", 2, "64 hexadecimal digits"),
        ("restore 1 --yes", 2, "required"),
        ("restore 1 --snapshot --yes", 2, "unexpected argument"),
        ("restore 1 01234567 --yes", 1, "no such backup"),
        (
            &format!("restore 1 {}{other_end} --yes", &db[..63]),
            1,
            "no such backup",
        ),
        (&format!("restore 1 {db}"), 2, "required"),
        (
            &format!("restore 1 {db} --type files --yes"),
            1,
            "holds db, not files",
        ),
        (
            &format!("restore 1 {db} --type both --yes"),
            1,
            "holds db, not both",
        ),
        (
            &format!("restore 1 {files} --type db --yes"),
            1,
            "holds files, not db",
        ),
        (
            &format!("restore 1 {db} --type all --yes"),
            2,
            "invalid value",
        ),
        (
            &format!("restore 1 {db} --source weekly --yes"),
            2,
            "invalid value",
        ),
        (&format!("restore 99 {db} --yes"), 1, "99"),
        (
            &format!("restore 7 {of_homeless} --yes"),
            1,
            "has no directory",
        ),
        (&format!("restore 7 {db} --yes"), 1, "no such backup"),
        (&format!("restore 0 {db} --yes"), 2, "0"),
        (&format!("restore 1,12 {db} --yes"), 2, "1,12"),
    ] {
        let error = world.run(line).failed(status);
        assert!(error.contains(said), "{line}: {error}");
        assert!(!error.contains('\n'), "{line}: {error}");
        world.assert_nothing_left();
    }
    world.assert_unchanged(&unchanged);
    assert_eq!(world.stops_and_starts(), [] as [&str; 0]);
    fs::rename(gone, &homeless.directory).unwrap();
    world.customers.push(homeless);
}

#[test]
fn without_room_nothing_is_begun_and_a_disk_that_fills_meanwhile_changes_nothing() {
    let mut world = World::new(&[]);
    let root = world.bed.customers_root();
    let _mount = Mount::tmpfs(&root, "size=40m,nr_inodes=9k").unwrap();
    world.customers.push(world.bed.add_customer(1).unwrap());
    let customer = world.customer(1);
    let mut bytes = vec![0; 24 << 20];
    rand::fill(&mut bytes[..]);
    fs::write(customer.site().join("large"), &bytes).unwrap();
    fs::write(customer.site().join("marker"), "shop 1\n").unwrap();
    let snapshot = world.back_up("1 --type files");
    let unchanged = world.evidence();
    for online in ["", "--online"] {
        let error = world
            .run(&format!("restore 1 {snapshot} {online} --yes"))
            .failed(1);
        assert!(error.contains("make room"), "{error}");
        world.assert_unchanged(&unchanged);
    }

    // It looked as if there were room: what runs out are inodes.
    fs::remove_file(customer.site().join("large")).unwrap();
    for number in 0..6000 {
        fs::write(customer.site().join(format!("{number}.txt")), "small").unwrap();
    }
    let many = world.back_up("1 --type files");
    fs::remove_dir_all(customer.site()).unwrap();
    fs::create_dir(customer.site()).unwrap();
    fs::write(customer.site().join("marker"), "live\n").unwrap();
    for number in 0..6000 {
        fs::write(customer.site().join(format!("live-{number}")), "").unwrap();
    }
    let unchanged = world.evidence();
    let error = world.run(&format!("restore 1 {many} --yes")).failed(1);
    assert!(error.contains("No space left"), "{error}");
    world.assert_unchanged(&unchanged);
    assert_eq!(world.stops_and_starts(), [] as [&str; 0]);
}

/// What was no directory in the place of his site directory when that was replaced.
fn set_aside(customer: &Customer) -> Vec<PathBuf> {
    let mut names = names(&customer.directory);
    names.retain(|path| path.display().to_string().contains("/wordpress.replaced-"));
    names
}

#[test]
fn links_in_the_place_of_directories_lead_a_restore_nowhere() {
    let world = World::new(&[1, 12]);
    let (customer, other) = (world.customer(1), world.customer(12));
    let snapshot = world.back_up("1");
    let goal = world.evidence();
    let victim = world.bed.scratch().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("precious"), "precious").unwrap();
    let etc = fs::metadata("/etc").unwrap().modified().unwrap();

    // His site directory is a link: the link goes aside, what it leads to stays.
    for target in [
        other.site().as_path(),
        Path::new("/etc"),
        Path::new("../customer-12/wordpress"),
        &victim,
        Path::new("loop/wordpress"),
    ] {
        fs::remove_dir_all(customer.site()).unwrap();
        symlink(target, customer.site()).unwrap();
        let document = world.run(&format!("restore 1 {snapshot} --yes")).good();
        let [aside] = set_aside(customer).try_into().unwrap();
        assert_eq!(fs::read_link(&aside).unwrap(), target);
        let name = aside.file_name().unwrap().to_string_lossy();
        let warnings = document["warnings"].to_string();
        assert!(warnings.contains(&*name), "{warnings}");
        fs::remove_file(&aside).unwrap();
        world.assert_unchanged(&goal);
    }
    // Or a file.
    fs::remove_dir_all(customer.site()).unwrap();
    fs::write(customer.site(), "mine").unwrap();
    world
        .run(&format!("restore 1 {snapshot} --type files --yes"))
        .good();
    let [aside] = set_aside(customer).try_into().unwrap();
    assert_eq!(fs::read(&aside).unwrap(), b"mine");
    fs::remove_file(&aside).unwrap();
    world.assert_nothing_left();
    assert_eq!(fs::metadata("/etc").unwrap().modified().unwrap(), etc);
    assert_eq!(fs::read(victim.join("precious")).unwrap(), b"precious");

    // His whole directory is one: refused.
    let aside = world.bed.scratch().join("aside");
    for target in [&other.directory, &victim, &aside] {
        fs::rename(&customer.directory, &aside).unwrap();
        symlink(target, &customer.directory).unwrap();
        let error = world.run(&format!("restore 1 {snapshot} --yes")).failed(1);
        assert!(error.contains("a link is not followed"), "{error}");
        fs::remove_file(&customer.directory).unwrap();
        fs::rename(&aside, &customer.directory).unwrap();
        world.assert_unchanged(&goal);
    }

    // His processes exchange his site for a link and back, all the time.
    let (bait, outside) = (
        customer.directory.join("bait"),
        world.bed.scratch().join("outside"),
    );
    fs::create_dir_all(outside.join("wp-content")).unwrap();
    fs::write(outside.join("precious"), "precious").unwrap();
    symlink(&outside, &bait).unwrap();
    chown(&outside, 33);
    let before = xtask::tree::TreeImage::of(&outside).unwrap();
    let done = AtomicBool::new(false);
    let statuses: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let site = customer.site();
                let _ = rustix::fs::renameat_with(CWD, &bait, CWD, &site, RenameFlags::EXCHANGE);
            }
        });
        let statuses = (0..4)
            .map(|_| {
                world
                    .run(&format!("restore 1 {snapshot} --type files --online --yes"))
                    .status
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        statuses
    });
    assert!(
        statuses.iter().all(|status| matches!(status, Some(0 | 1))),
        "{statuses:?}"
    );
    let after = xtask::tree::TreeImage::of(&outside).unwrap();
    assert_eq!(before.differences(&after), [] as [&str; 0]);
    goal.assert_others_same(&world.evidence(), customer);
    let _ = fs::remove_file(&bait).or_else(|_| fs::remove_dir_all(&bait));
    world.run(&format!("restore 1 {snapshot} --yes")).good();
    // Also by the last one, if it was the link that stayed in the place of the site.
    for aside in set_aside(customer) {
        fs::remove_file(aside).unwrap();
    }
    world.assert_unchanged(&goal);
}
