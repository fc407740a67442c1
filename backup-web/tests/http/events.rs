//! Progress as it comes.

use crate::world::World;

#[test]
fn the_events_of_a_job_begin_with_what_is_and_end_with_its_end() {
    let world = World::new([1, 2]);
    let server = world.serve();
    let client = server.customer(1);
    client.get("/api/backups/events").is(204);
    client.post("/backups/create", "backup_type=files").is(200);
    let mut events = client.events("/api/backups/events");
    assert_eq!(
        events.head.is(200).header("content-type"),
        Some("text/event-stream")
    );
    assert_eq!(events.head.header("cache-control"), Some("no-store"));
    let first = events.next().unwrap();
    assert_eq!(
        (&first["status"], &first["customer_id"]),
        (&"pending".into(), &1.into())
    );
    server.customer(2).get("/api/backups/events").is(204);
    let worker = world.product.spawn(world.product.command("worker"));
    let mut last = first;
    while let Some(job) = events.next() {
        assert_ne!(job, last, "nothing is news twice");
        last = job;
    }
    assert_eq!(last["status"], "completed", "{last}");
    client.get("/api/backups/events").is(204);
    worker.signal(rustix::process::Signal::TERM).unwrap();
    world.product.finish(worker).done();
    world.stop(server);
}

#[test]
fn the_true_end_of_a_stuck_restore_is_told_as_it_comes() {
    let world = World::new([1]);
    world.sql(
        "INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status, failure, completed_at)
         VALUES (1, 'restore', 'both', 'failed', 'stuck', NOW())",
    );
    let server = world.serve();
    let client = server.customer(1);
    let mut events = client.events("/api/backups/events");
    assert_eq!(events.next().unwrap()["failure"], "stuck");
    world.sql("UPDATE customer_backup_jobs SET status = 'completed', failure = NULL");
    assert_eq!(events.next().unwrap()["status"], "completed");
    assert_eq!(events.next(), None);
    client.get("/api/backups/events").is(204);
    world.stop(server);
}

#[test]
fn events_end_with_the_session() {
    let world = World::new([1]);
    let server = world.serve();
    let (leaves, stays) = (server.customer(1), server.customer(1));
    leaves.post("/backups/create", "backup_type=files").is(200);
    let mut of_leaving = leaves.events("/api/backups/events");
    let mut of_staying = stays.events("/api/backups/events");
    assert!(of_leaving.next().is_some() && of_staying.next().is_some());
    leaves.post("/logout", "").is(200);
    assert_eq!(of_leaving.next(), None);
    let id = stays.get("/api/backups/status").json()["job"]["id"].to_string();
    stays
        .post(&format!("/backups/jobs/{id}/cancel"), "")
        .is(200);
    assert_eq!(of_staying.next().unwrap()["status"], "failed");
    world.stop(server);
}

#[test]
fn a_customer_cannot_have_streams_without_end() {
    let world = World::new([1, 2]);
    let server = world.serve();
    let client = server.customer(1);
    client.post("/backups/create", "backup_type=files").is(200);
    let open: Vec<_> = (0..50)
        .map(|_| client.events("/api/backups/events"))
        .collect();
    client.get("/api/backups/events").refusal(429);
    let other = server.customer(2);
    other.post("/backups/create", "backup_type=files").is(200);
    assert!(other.events("/api/backups/events").next().is_some());
    drop(open);
    // The server learns that they are gone when it says something.
    let id = client.get("/api/backups/status").json()["job"]["id"].to_string();
    client
        .post(&format!("/backups/jobs/{id}/cancel"), "")
        .is(200);
    client.post("/backups/create", "backup_type=files").is(200);
    xtask::product::wait_until("there is room again", || {
        client.events("/api/backups/events").head.status == 200
    });
    world.stop(server);
}

#[test]
fn five_hundred_open_streams_cost_a_query_a_second_and_end_with_the_server() {
    const SECONDS: u64 = 5;
    let world = World::new(1..=10);
    let server = world.serve();
    let mut streams = Vec::new();
    for customer in 1..=10 {
        let client = server.customer(customer);
        client.post("/backups/create", "backup_type=files").is(200);
        streams.extend((0..50).map(|_| client.events("/api/backups/events")));
    }
    for stream in &mut streams {
        assert!(stream.next().is_some());
    }
    // The database's own clock and counter, so that a busy machine makes no difference.
    let look = || {
        let row = world.sql("SELECT variable_value, ROUND(UNIX_TIMESTAMP(NOW(3)) * 1000) FROM information_schema.global_status WHERE variable_name = 'COM_SELECT'");
        let numbers: Vec<u64> = row
            .split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect();
        (numbers[0], numbers[1])
    };
    // What a look costs itself: a query of the streams may come between two, but not each time.
    let of_looking = (0..10)
        .map(|_| {
            let (before, _) = look();
            look().0 - before
        })
        .min()
        .unwrap();
    let (from, begun) = look();
    let mut looks = 0;
    let (mut to, mut ended) = (from, begun);
    xtask::product::wait_until("some seconds have gone by", || {
        (to, ended) = look();
        looks += 1;
        ended - begun >= SECONDS * 1000
    });
    let of_streams = to - from - looks * of_looking;
    let seconds = (ended - begun).div_ceil(1000);
    println!("500 streams: {of_streams} queries in {seconds} s");
    assert!(
        (1..=seconds + 1).contains(&of_streams),
        "{of_streams} queries in {seconds} s"
    );
    world.stop(server);
    for mut stream in streams {
        assert_eq!(stream.next(), None);
    }
}
