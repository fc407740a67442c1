//! Links that a customer plants where a restore writes, beforehand and while it is at it: they lead it nowhere.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags};
use xtask::mount::Mount;
use xtask::testbed::TestBed;
use xtask::tree::TreeImage;

use crate::faults::Held;
use crate::world::{World, chown, names};

/// Something that is none of the customer's, and what it was.
struct Victim {
    directory: PathBuf,
    before: TreeImage,
}

impl Victim {
    fn new(world: &World) -> Self {
        let directory = world.bed.scratch().join("victim");
        fs::create_dir_all(directory.join("wp-content/uploads")).unwrap();
        for name in ["secret", "marker", "wp-content/uploads/0.jpg"] {
            fs::write(directory.join(name), "precious").unwrap();
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o640)).unwrap();
        }
        Self {
            before: TreeImage::of(&directory).unwrap(),
            directory,
        }
    }

    #[track_caller]
    fn assert_untouched(&self) {
        let now = TreeImage::of(&self.directory).unwrap();
        assert_eq!(self.before.differences(&now), [] as [&str; 0]);
    }
}

/// Everything of a file that a write, a change of owner or of mode would change.
fn identity(path: &Path) -> (u64, u32, u32, u32, Vec<u8>) {
    let found = fs::symlink_metadata(path).unwrap();
    (
        found.ino(),
        found.uid(),
        found.gid(),
        found.mode(),
        fs::read(path).unwrap(),
    )
}

#[test]
fn hard_links_in_a_site_are_not_written_through() {
    let world = World::new(&[1, 12]);
    let (customer, other) = (world.customer(1), world.customer(12));
    let snapshot = world.back_up("1");
    let goal = world.evidence();
    let outside = world.bed.scratch().join("outside");
    fs::write(&outside, "root's").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
    let victims = [outside, other.site().join("marker")];
    let before = victims.each_ref().map(|victim| identity(victim));
    for rest in ["", "--online", "--type files"] {
        for (victim, name) in victims.iter().zip(["marker", "wp-content/uploads/2.jpg"]) {
            let planted = customer.site().join(name);
            fs::remove_file(&planted).unwrap();
            fs::hard_link(victim, &planted).unwrap();
        }
        world
            .run(&format!("restore 1 {snapshot} {rest} --yes"))
            .good();
        assert_eq!(victims.each_ref().map(|victim| identity(victim)), before);
        world.assert_unchanged(&goal);
    }
}

#[test]
fn what_is_planted_in_the_place_of_the_maintenance_file_leads_nowhere() {
    let world = World::new(&[1]);
    let customer = world.customer(1);
    let victim = Victim::new(&world);
    let snapshot = world.back_up("1");
    let goal = world.evidence();
    let place = customer.directory.join(".maintenance");
    let secret = victim.directory.join("secret");
    let plants: [&dyn Fn(); 5] = [
        &|| symlink(&secret, &place).unwrap(),
        &|| symlink(victim.directory.join("made"), &place).unwrap(),
        &|| symlink(&victim.directory, &place).unwrap(),
        &|| fs::hard_link(&secret, &place).unwrap(),
        &|| fs::create_dir(&place).unwrap(),
    ];
    for plant in plants {
        for rest in ["", "--online"] {
            plant();
            world
                .run(&format!("restore 1 {snapshot} {rest} --yes"))
                .good();
            // The plant itself stays, there or moved out of the way: it is not ours to remove.
            for entry in fs::read_dir(&customer.directory).unwrap().flatten() {
                if entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with(".maintenance")
                {
                    let path = entry.path();
                    fs::remove_file(&path)
                        .or_else(|_| fs::remove_dir(&path))
                        .unwrap();
                }
            }
            victim.assert_untouched();
            world.assert_unchanged(&goal);
        }
    }
}

#[test]
fn links_that_come_and_go_during_the_exchange_gain_nothing() {
    let world = World::new(&[1, 12]);
    let (customer, other) = (world.customer(1), world.customer(12));
    let snapshot = world.back_up("1");
    let victim = Victim::new(&world);
    chown(&victim.directory, 33);
    let before = TreeImage::of(&victim.directory).unwrap();
    let goal = world.evidence();
    let (bait, of_other) = (
        customer.directory.join("bait"),
        customer.directory.join("other"),
    );
    for round in 0..6 {
        symlink(&victim.directory, &bait).unwrap();
        symlink(other.site(), &of_other).unwrap();
        let online = ["", "--online"][round % 2];
        let mut command =
            world.command(&format!("restore 1 {snapshot} --type files {online} --yes"));
        let held = Held::at(&world, &mut command, "stop");
        let child = command.spawn().unwrap();
        held.wait();
        let done = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            for (link, place) in [
                (&bait, customer.site()),
                (&of_other, customer.site()),
                (&bait, customer.directory.join(".maintenance")),
            ] {
                let done = &done;
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let swap = RenameFlags::EXCHANGE;
                        let _ = rustix::fs::renameat_with(CWD, link, CWD, &place, swap);
                    }
                });
            }
            held.let_go();
            let outcome = world.finish(child);
            done.store(true, Ordering::Relaxed);
            outcome
        });
        assert!(matches!(outcome.status, Some(0 | 1)), "{outcome:?}");
        let after = TreeImage::of(&victim.directory).unwrap();
        assert_eq!(before.differences(&after), [] as [&str; 0]);
        goal.assert_others_same(&world.evidence(), customer);

        // He has made a mess of what is his; the next restore makes it good.
        world.run("recover");
        for path in names(&customer.directory) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let is_his = ["bait", "other", ".maintenance", "wordpress.replaced-"]
                .iter()
                .any(|begin| name.starts_with(begin));
            if is_his {
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            }
        }
        // Whose the files are to be is told by the directory in whose place they come.
        let site = customer.site();
        if !fs::symlink_metadata(&site).is_ok_and(|found| found.is_dir()) {
            let _ = fs::remove_file(&site);
            fs::create_dir(&site).unwrap();
        }
        chown(&site, 33);
        world.run(&format!("restore 1 {snapshot} --yes")).good();
        world.assert_unchanged(&goal);
    }
}

#[test]
fn nobody_but_root_reaches_what_is_staged_and_what_is_written_down() {
    let world = World::new(&[1]);
    let snapshot = world.back_up("1");
    let mut command = world.command(&format!("restore 1 {snapshot} --yes"));
    let held = Held::at(&world, &mut command, "stop");
    let child = command.spawn().unwrap();
    held.wait();
    let staging = world
        .staging_directories()
        .pop()
        .expect("nothing is staged");
    let journal = names(&world.bed.scratch().join("state/restores"))
        .pop()
        .expect("there is no journal");
    let as_customer = |program: &str, arguments: &[&Path]| {
        Command::new("setpriv")
            .args(["--reuid=33", "--regid=33", "--clear-groups", program])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    assert!(
        as_customer("ls", &[&world.customer(1).site()]),
        "he cannot even reach his own"
    );
    for place in [&staging, &journal] {
        let above = place.parent().unwrap();
        let planted = above.join("planted");
        assert!(!as_customer("ls", &[above]), "{}", above.display());
        assert!(!as_customer("cat", &[place]), "{}", place.display());
        assert!(!as_customer("touch", &[&planted]), "{}", planted.display());
        assert!(
            !as_customer("mv", &[place, Path::new("/tmp")]),
            "{}",
            place.display()
        );
    }
    assert_eq!(fs::metadata(&journal).unwrap().mode() & 0o777, 0o600);
    held.let_go();
    world.finish(child).good();
    world.assert_nothing_left();
}

/// Where the file system of the sites can share blocks, what has not changed takes no room.
#[test]
fn unchanged_files_share_their_blocks_with_the_live_site_where_the_file_system_can() {
    const MIB: u64 = 1 << 20;
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let disk = fs::File::create(&image).unwrap();
    disk.set_len(400 * MIB).unwrap();
    let made = Command::new("mkfs.btrfs")
        .arg("--quiet")
        .arg(&image)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!(
            "SKIPPED: mkfs.btrfs (package btrfs-progs) is not here, so no file system that can share blocks"
        );
        return;
    }
    let bed = TestBed::start().unwrap();
    let mount = match Mount::image(&image, &bed.customers_root()) {
        Ok(mount) => mount,
        Err(error) => {
            println!("SKIPPED: an image of btrfs cannot be mounted by a loop device: {error}");
            return;
        }
    };
    let world = World::on(bed, &[1]);
    let site = world.customer(1).site();
    let mut bytes = vec![0; 64 << 20];
    rand::fill(&mut bytes[..]);
    fs::write(site.join("large"), &bytes).unwrap();
    let backup = world.back_up("1");
    fs::write(site.join("marker"), "changed since").unwrap();
    let root = fs::File::open(world.bed.customers_root()).unwrap();
    let free = || {
        rustix::fs::syncfs(&root).unwrap();
        let found = rustix::fs::fstatvfs(&root).unwrap();
        found.f_bavail * found.f_frsize
    };
    let before = free();
    let mut command = world.command(&format!("restore 1 {backup} --type files --yes"));
    let held = Held::at(&world, &mut command, "stop");
    let child = command.spawn().unwrap();
    held.wait();
    let [staging] = world.staging_directories().try_into().unwrap();
    let staged = fs::read(staging.join("files/wordpress/large")).unwrap();
    assert!(staged == bytes, "it is there twice");
    let taken = before.saturating_sub(free());
    assert!(taken < 16 * MIB, "and takes {taken} bytes more");
    held.let_go();
    world.finish(child).good();
    assert!(fs::read(site.join("large")).unwrap() == bytes);
    assert_eq!(fs::read(site.join("marker")).unwrap(), b"shop 1\n");
    world.assert_nothing_left();
    drop((root, world));
    drop(mount);
}
