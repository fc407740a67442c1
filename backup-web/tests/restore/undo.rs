//! What a restore replaced is a backup of the moment before the exchange: all of it, and as good as any other.

use std::sync::atomic::{AtomicBool, Ordering};

use xtask::testbed::Customer;
use xtask::tree::TreeImage;

use crate::crash::{Shop, State};
use crate::faults::Held;
use crate::world::World;

/// Import a dump as anybody would by hand; what is in the database then.
fn imported_by_hand(world: &World, customer: &Customer, dump: &[u8]) -> String {
    world.sql("CREATE DATABASE by_hand CHARACTER SET utf8mb4");
    let script = [b"USE by_hand;\n", dump].concat();
    world.bed.mariadb().sql_bytes(&script).unwrap();
    let content = content(world, "by_hand").replace("by_hand", &customer.database);
    world.sql("DROP DATABASE by_hand");
    content
}

fn content(world: &World, database: &str) -> String {
    String::from_utf8(world.bed.dump(database).unwrap()).unwrap()
}

#[test]
fn what_was_replaced_comes_back_with_every_order_placed_before_the_exchange() {
    let shop = Shop::new();
    let world = &shop.world;
    let customer = world.customer(1);
    for online in ["", "--online"] {
        let mut command = world.command(&format!("restore 1 {} {online} --yes", shop.backup));
        let held = Held::at(world, &mut command, "stop");
        let begun = AtomicBool::new(false);
        let (child, placed) = std::thread::scope(|scope| {
            // Until the shop is being stopped: by visitors, or by programs that no maintenance page keeps out.
            let orders = scope.spawn(|| {
                let mut placed = 0;
                while !held.has_come() {
                    world.sql_as(customer, "INSERT INTO orders (note) VALUES ('just now')");
                    placed += 1;
                    begun.store(true, Ordering::Relaxed);
                }
                placed
            });
            crate::world::eventually("orders are placed", || begun.load(Ordering::Relaxed));
            let child = command.spawn().unwrap();
            held.wait();
            (child, orders.join().unwrap())
        });
        assert!(placed > 1);
        let moment = world.evidence();
        let (files, tables) = (
            TreeImage::of(&customer.site()).unwrap(),
            content(world, &customer.database),
        );
        held.let_go();
        let document = world.finish(child).good();
        assert_eq!(shop.state(), State::New);
        let kept = document["kept_snapshot"].as_str().unwrap().to_owned();
        assert_eq!(world.listed(1, "pre_restore")[0], kept);

        // The stock programs read it.
        let target = tempfile::tempdir().unwrap();
        let restic = world.bed.restic().unwrap();
        restic.restore(&kept, target.path()).unwrap();
        let site = customer.site();
        let restored = target.path().join(site.strip_prefix("/").unwrap());
        let differences = files.differences(&TreeImage::of(&restored).unwrap());
        assert_eq!(differences, [] as [&str; 0]);
        let dump = restic
            .dump(&kept, "/tmp/customer-backup-1/customer_1.sql")
            .unwrap();
        assert_eq!(imported_by_hand(world, customer, &dump), tables);

        // So does ours, and the restore is undone.
        let line = format!("restore 1 {kept} --source pre-restore --yes");
        world.run(&line).good();
        // But for what the restore itself had there at that moment.
        let of_restore = [
            "customer 1: \".maintenance\"",
            "the database customer_1__",
            "accounts",
        ];
        moment.assert_same_but(&world.evidence(), &of_restore);
        let found = world.sql_as(
            customer,
            "SELECT COUNT(*) FROM orders WHERE note = 'just now'",
        );
        assert_eq!(found, format!("{placed}\n"), "an order was lost");
        shop.assert_nothing_left();
        shop.reset();
    }
}

#[test]
fn of_what_was_replaced_the_newest_three_are_kept_and_the_backup_itself_stays() {
    let shop = Shop::new();
    let mut kept = Vec::new();
    for number in 0..5 {
        let rest = ["--type db", "--type files", ""][number % 3];
        let document = shop.restore(rest).good();
        kept.push(document["kept_snapshot"].as_str().unwrap().to_owned());
    }
    kept.reverse();
    assert_eq!(shop.world.listed(1, "pre_restore"), kept[..3]);
    assert_eq!(shop.world.listed(1, "manual"), [shop.backup.as_str()]);
    let snapshots = shop.world.bed.restic().unwrap().snapshots().unwrap();
    assert_eq!(
        snapshots.len(),
        4,
        "the others are gone from the repository"
    );
}
