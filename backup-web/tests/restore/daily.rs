//! The platform's own daily snapshots, made by the stock restic for everybody at once.

use std::fs;

use serde_json::json;

use crate::world::World;

#[test]
fn of_the_daily_backup_of_everybody_one_customer_comes_back_alone() {
    let mut world = World::new(&[1, 12, 123]);
    let before = world.evidence();
    let daily = world.bed.back_up_daily("2026-01-31").unwrap();
    // A customer who came later, and one whose number begins like another's.
    world.customers.push(world.bed.add_customer(1234).unwrap());

    for id in [1, 12, 123] {
        let list = world.run(&format!("list {id}")).good();
        assert_eq!(list["manual"], json!([]));
        assert_eq!(list["pre_restore"], json!([]));
        let [entry] = list["daily"].as_array().unwrap().as_slice() else {
            panic!("{list}")
        };
        assert_eq!(entry["id"], daily.as_str());
        assert_eq!(entry["backup_type"], "both");
    }
    assert_eq!(world.listed(1234, "daily"), [] as [&str; 0]);

    for customer in &world.customers[..3] {
        fs::remove_dir_all(customer.site().join("wp-content")).unwrap();
        fs::write(customer.site().join("marker"), "defaced").unwrap();
        world.sql_as(
            customer,
            "DROP TABLE order_lines; CREATE TABLE ransom_note (text TEXT)",
        );
    }
    let wrecked = world.evidence();
    // Named by its first digits, too.
    let line = format!("restore 1 {} --source daily --yes", &daily[..8]);
    world.run(&line).good();
    let restored = world.evidence();
    wrecked.assert_others_same(&restored, world.customer(1));
    let still = before.changes(&restored);
    // The events are not in the platform's dump.
    assert!(
        still.iter().all(|line| !line.starts_with("customer 1:")),
        "{still:#?}"
    );
    let tables = |world: &World| world.bed.table_checksums("customer_1").unwrap();
    let now = tables(&world);
    assert!(
        now.contains("order_lines\t50\t") && !now.contains("ransom_note"),
        "{now}"
    );
    assert_eq!(
        world.sql("CALL customer_1.count_orders(@n); SELECT @n"),
        "50\n"
    );
    world.assert_nothing_left();

    // Nothing of it is his who came later.
    let unchanged = world.evidence();
    for name in [&daily[..], &daily[..8]] {
        let error = world
            .run(&format!("restore 1234 {name} --source daily --yes"))
            .failed(1);
        assert!(error.contains("no such backup"), "{error}");
    }
    world.assert_unchanged(&unchanged);
}

#[test]
fn a_daily_backup_is_what_it_holds_of_the_customer() {
    let world = World::new(&[1, 12, 123]);
    let without_dump = world.customer(1);
    let without_files = world.customer(12);
    world.bed.back_up_daily("2026-01-30").unwrap();
    let restic = world.bed.daily_restic().unwrap();
    restic.run(["forget", "latest"]).unwrap();
    fs::remove_file(world.bed.daily_dumps().join("customer_1.sql")).unwrap();
    fs::rename(
        without_files.site(),
        without_files.directory.join("elsewhere"),
    )
    .unwrap();
    // A dump that failed leaves an empty file in the platform's directory.
    fs::write(world.bed.daily_dumps().join("customer_123.sql"), "").unwrap();
    let daily = world.daily();

    for (id, backup_type, other) in [
        (1, "files", "db"),
        (12, "db", "files"),
        (123, "files", "both"),
    ] {
        let list = world.run(&format!("list {id}")).good();
        assert_eq!(list["daily"][0]["backup_type"], backup_type, "{list}");
        let unchanged = world.evidence();
        let error = world
            .run(&format!(
                "restore {id} {daily} --source daily --type {other} --yes"
            ))
            .failed(1);
        assert!(
            error.contains(&format!("holds {backup_type}, not {other}")),
            "{error}"
        );
        world.assert_unchanged(&unchanged);
    }
    // Without a type it is what there is.
    let before = world.evidence();
    fs::write(without_dump.site().join("marker"), "defaced").unwrap();
    let report = world
        .run(&format!("restore 1 {daily} --source daily --yes"))
        .good();
    assert_eq!(report["restore_type"], "files");
    world.assert_unchanged(&before);
    assert_eq!(
        world
            .run(&format!("restore 12 {daily} --source daily --yes"))
            .good()["restore_type"],
        "db"
    );
    // A snapshot without the platform's tag is not one of its daily ones.
    let odd = restic
        .backup(
            [world.bed.daily_dumps(), world.bed.customers_root()],
            &["daily-test", "xdaily"],
        )
        .unwrap();
    assert_eq!(world.listed(1, "daily"), [daily]);
    let error = world
        .run(&format!("restore 1 {odd} --source daily --yes"))
        .failed(1);
    assert!(error.contains("no such backup"), "{error}");
}
