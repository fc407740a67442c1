//! Nobody sees or restores what is another's, whatever he calls it.

use std::fs;

use xtask::testbed::Customer;

use crate::world::World;

#[test]
fn a_backup_of_customer_12_is_not_there_for_customer_1() {
    let world = World::new(&[1, 12]);
    let twelve = world.customer(12);
    let own = world.back_up("1");
    let manual = world.back_up("12");
    let daily = {
        // Of customer 12 alone: nothing of customer 1 is in it.
        let dump = world.bed.dump(&twelve.database).unwrap();
        let file = world.bed.daily_dumps().join("customer_12.sql");
        fs::write(&file, dump).unwrap();
        let restic = world.bed.daily_restic().unwrap();
        restic
            .backup([&file, &twelve.directory], &["daily", "2026-01-31"])
            .unwrap()
    };
    let pre_restore = retagged(&world, &manual, &["customer-12", "pre-restore", "both"]);
    let unchanged = world.evidence();
    assert_eq!(world.listed(1, "manual"), [own.as_str()]);
    assert_eq!(world.listed(1, "daily"), [] as [&str; 0]);
    assert_eq!(world.listed(1, "pre_restore"), [] as [&str; 0]);
    assert_eq!(world.listed(12, "manual"), [manual.as_str()]);
    assert_eq!(world.listed(12, "daily"), [daily.as_str()]);
    assert_eq!(world.listed(12, "pre_restore"), [pre_restore.as_str()]);

    let stranger = "0123456789abcdef".repeat(4);
    let mut said = Vec::new();
    for id in [&manual, &daily, &pre_restore, &stranger] {
        for source in ["manual", "daily", "pre-restore"] {
            let short = (source == "daily").then_some(&id[..8]);
            for name in std::iter::once(&id[..]).chain(short) {
                let line = format!("restore 1 {name} --source {source} --yes");
                let error = world.run(&line).failed(1);
                said.push(error.replace(name, "ID"));
            }
        }
    }
    // What is another's is told from what does not exist by nothing.
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("customer 1 has no such backup ID"),
        "{said:?}"
    );
    // Nor is his own there under another name than its own.
    for source in ["daily", "pre-restore"] {
        world
            .run(&format!("restore 1 {own} --source {source} --yes"))
            .failed(1);
    }
    world.assert_unchanged(&unchanged);

    // It is for him whose it is.
    fs::write(twelve.site().join("marker"), "defaced").unwrap();
    for (id, source) in [
        (&manual, "manual"),
        (&pre_restore, "pre-restore"),
        (&daily, "daily"),
    ] {
        let line = format!("restore 12 {} --source {source} --yes", &id[..8]);
        world.run(&line).good();
        world.assert_unchanged(&unchanged);
    }
}

/// The same content under other tags, made by restic.
fn retagged(world: &World, id: &str, tags: &[&str]) -> String {
    let restic = world.bed.restic().unwrap();
    let known = |snapshot: &serde_json::Value| snapshot["id"].as_str().map(str::to_owned);
    let before: Vec<_> = restic
        .snapshots()
        .unwrap()
        .iter()
        .filter_map(known)
        .collect();
    let target = world.bed.scratch().join("again");
    let _ = fs::remove_dir_all(&target);
    restic.restore(id, &target).unwrap();
    // restic stores the paths that it is given: they have to be real.
    let dump = "tmp/customer-backup-12";
    fs::remove_dir_all(format!("/{dump}")).ok();
    fs::rename(target.join(dump), format!("/{dump}")).unwrap();
    let site = world.customer(12).directory.clone();
    let made = restic.backup([format!("/{dump}").into(), site], tags);
    fs::remove_dir_all(format!("/{dump}")).unwrap();
    let made = made.unwrap();
    assert!(!before.contains(&made));
    made
}

#[test]
fn no_trick_with_tags_makes_a_backup_somebodys() {
    let world = World::new(&[1, 12]);
    let (one, twelve) = (world.customer(1), world.customer(12));
    world.back_up("1");
    let restic = world.bed.restic().unwrap();
    let make = |customer: &Customer, tags: &[&str]| restic.backup([customer.site()], tags).unwrap();
    let tricks: &[&[&str]] = &[
        &["customer-1", "customer-12", "manual", "files"],
        &["xcustomer-1", "manual", "files"],
        &["customer-01", "manual", "files"],
        &["customer-1x", "manual", "files"],
        &["Customer-1", "manual", "files"],
        &["customer-", "1", "manual", "files"],
        &["customer-1/../customer-12", "manual", "files"],
        &["customer-12", "customer-1", "manual", "files"],
        &["manual", "files"],
        &["customer-1"],
        &["customer-1", "manual", "pre-restore", "files"],
        &["customer-1", "daily", "files"],
    ];
    let snapshots: Vec<_> = tricks
        .iter()
        .flat_map(|tags| [make(one, tags), make(twelve, tags)])
        .collect();
    // Tagged as his, but what it holds lies at the paths of somebody whose number begins like his.
    let wrong_paths = make(twelve, &["customer-1", "manual", "files"]);
    let unchanged = world.evidence();
    for customer in [1, 12] {
        for list in ["manual", "daily", "pre_restore"] {
            let listed = world.listed(customer, list);
            assert!(
                listed.iter().all(|id| !snapshots.contains(id)),
                "{customer} {list}"
            );
        }
    }
    for (at, snapshot) in snapshots.iter().enumerate().step_by(2) {
        let error = world.run(&format!("restore 1 {snapshot} --yes")).failed(1);
        assert!(
            error.contains("no such backup"),
            "{:?}: {error}",
            tricks[at / 2]
        );
    }
    let error = world
        .run(&format!("restore 1 {wrong_paths} --yes"))
        .failed(1);
    assert!(
        error.contains("holds neither a dump nor a site directory"),
        "{error}"
    );
    world.assert_unchanged(&unchanged);
}
