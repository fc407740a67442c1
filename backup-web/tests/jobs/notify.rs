//! Telling customers and the platform how jobs end: once and truthfully, however the receivers behave and whoever dies.

use std::collections::BTreeSet;
use std::fs;

use backup_app::{model, words};
use backup_core::jobs::{Job, JobStatus};
use backup_core::repository::BackupType;
use jiff::Timestamp;
use serde_json::{Value, json};
use xtask::certificate::make_certificate;
use xtask::nginx::Nginx;
use xtask::port;

use crate::listeners::{
    Listeners, SECRET, USER, assert_genuine, counted, document, is_genuine, make_due,
    until_all_is_told, waiting,
};
use crate::world::{World, eventually, until_log};

/// As the dashboard has it.
fn on_the_dashboard(job: &Job) -> model::Job {
    serde_json::from_value(serde_json::to_value(job).unwrap()).unwrap()
}

/// What the dashboard says of its end.
fn sentence(job: &Job) -> String {
    match job.status {
        JobStatus::Completed => words::done(&on_the_dashboard(job)).message,
        _ => job.error_message.clone().unwrap(),
    }
}

fn title(job: &Job) -> String {
    let job = on_the_dashboard(job);
    format!("{}: {}", words::job_title(&job), words::ended(&job))
}

#[test]
fn who_is_not_configured_is_told_nothing_and_nothing_is_written_down() {
    let world = World::new([1]);
    let cancelled = world.queue(1, BackupType::Files);
    world
        .runtime
        .block_on(world.service.cancel(None, cancelled))
        .unwrap();
    world.back_up(1, BackupType::Files);
    assert_eq!(waiting(&world), 0);
    for channel in ["webhook", "email"] {
        assert_eq!(counted(&world, channel, "sent"), 0);
    }
}

#[test]
fn each_end_of_a_job_is_told_once_and_truthfully_in_the_words_of_the_dashboard() {
    let listeners = Listeners::new();
    let world = listeners.world([1]);
    let worker = world.start(listeners.command(&world, "worker"));
    let mut ids = BTreeSet::new();
    let mut jobs = Vec::new();

    let made = world.queue(1, BackupType::Both);
    let snapshot = world.completed(made);
    jobs.push((made, "backup.completed"));
    let restored = world.queue_restore(1, &snapshot);
    world.ended(restored);
    jobs.push((restored, "restore.completed"));
    let directory = &world.customer(1).directory;
    let elsewhere = directory.with_extension("away");
    fs::rename(directory, &elsewhere).unwrap();
    let failed = world.queue(1, BackupType::Files);
    world.ended(failed);
    jobs.push((failed, "backup.failed"));
    fs::rename(&elsewhere, directory).unwrap();
    world.end(worker);
    // Nobody runs it: it ends where it is cancelled.
    let cancelled = world.queue(1, BackupType::Db);
    let cancel = world.service.cancel(None, cancelled);
    world.runtime.block_on(cancel).unwrap();
    jobs.push((cancelled, "backup.cancelled"));
    let worker = world.start(listeners.command(&world, "worker"));
    until_all_is_told(&world);
    world.end(worker);

    let told = listeners.receiver.told();
    let mails = listeners.smtp.mails().unwrap();
    assert_eq!((told.len(), mails.len()), (jobs.len(), jobs.len()));
    for (id, event) in &jobs {
        let job = world.job(*id);
        let of_job = |document: &Value| document["data"]["job_id"] == json!(id);
        let told: Vec<_> = told.iter().filter(|told| of_job(&document(told))).collect();
        let [told] = told.as_slice() else {
            panic!("{event}: {told:?}")
        };
        assert_eq!(told.request, "POST /hooks?at=backups HTTP/1.1");
        assert_eq!(told.header("content-type"), Some("application/json"));
        let host = format!("127.0.0.1:{}", listeners.receiver.port());
        assert_eq!(told.header("host"), Some(host.as_str()));
        assert!(ids.insert(told.header("webhook-id").unwrap().to_owned()));
        assert_genuine(told);
        let now = Timestamp::now().as_second();
        let sent: i64 = told.header("webhook-timestamp").unwrap().parse().unwrap();
        assert!((now - 600..=now).contains(&sent), "{sent}");
        let is_job = |key: &str, value: Value| {
            assert_eq!(document(told)["data"][key], value, "{event}: {key}");
        };
        assert_eq!(document(told)["type"], *event);
        assert_eq!(document(told)["timestamp"], json!(job.completed_at));
        is_job("customer_id", json!(1));
        is_job("job_type", json!(job.job_type));
        is_job("backup_type", json!(job.backup_type));
        is_job("status", json!(job.status));
        is_job("failure", json!(job.failure));
        is_job("snapshot_id", json!(job.snapshot_id));
        is_job("kept_snapshot", json!(job.kept_snapshot));
        is_job("created_at", json!(job.created_at));
        is_job("started_at", json!(job.started_at));
        is_job("completed_at", json!(job.completed_at));
        is_job("message", json!(sentence(&job)));

        let line = format!("Job: {id}\n");
        let mails: Vec<_> = mails
            .iter()
            .filter(|mail| mail.text().contains(&line))
            .collect();
        let [mail] = mails.as_slice() else {
            panic!("{event}: {mails:?}")
        };
        assert_eq!(mail.headers("X-Rcpt"), ["owner@shop-1.example"]);
        assert_eq!(mail.headers("To"), ["owner@shop-1.example"]);
        assert_eq!(mail.headers("X-From"), ["backups@platform.example"]);
        assert_eq!(mail.headers("X-User"), [USER]);
        assert_eq!(mail.headers("From"), ["Backups <backups@platform.example>"]);
        assert_eq!(mail.headers("Subject"), [title(&job)]);
        assert!(mail.headers("Content-Type")[0].starts_with("text/plain"));
        assert_eq!(mail.headers("Auto-Submitted"), ["auto-generated"]);
        let message_id = mail.headers("Message-ID")[0].to_owned();
        assert!(message_id.ends_with("@platform.example>") && ids.insert(message_id));
        let in_words = |time: Timestamp| time.strftime("%a %-d %b %Y, %H:%M UTC").to_string();
        let mut lines = vec![
            title(&job),
            String::new(),
            sentence(&job),
            String::new(),
            "Shop: shop-1.example".to_owned(),
        ];
        lines.extend(
            job.started_at
                .map(|at| format!("Started: {}", in_words(at))),
        );
        lines.push(format!("Ended: {}", in_words(job.completed_at.unwrap())));
        lines.push(format!("Job: {id}"));
        lines.push(String::new());
        lines.push("Your backups: https://backups.example/backups".to_owned());
        assert_eq!(mail.text().trim_end(), lines.join("\n"));
    }
    for channel in ["webhook", "email"] {
        assert_eq!(counted(&world, channel, "sent"), 4);
        assert_eq!(counted(&world, channel, "given_up"), 0);
    }
    // What others could have sent is told apart.
    let told = &told[0];
    let forged = told.body.replace("backup", "Backup");
    assert!(!is_genuine(SECRET, told, &forged));
    let other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    assert!(!is_genuine(other, told, &told.body));
}

#[test]
fn a_receiver_that_was_away_is_told_once_when_it_is_back() {
    let mut listeners = Listeners::new();
    let world = listeners.world([1]);
    listeners.smtp.kill();
    listeners.receiver.answer(503, "");
    let mut worker = world.start(listeners.command(&world, "worker"));
    let job = world.queue(1, BackupType::Files);
    world.completed(job);
    let until_put_off = |attempts: u32, seconds: u32| {
        let query = format!(
            "SELECT COUNT(*) FROM shophosting_db.backup_notifications
             WHERE attempts = {attempts} AND due_at > (UNIX_TIMESTAMP() + {seconds}) * 1000"
        );
        eventually("both are put off", || world.sql(&query) == "2\n");
    };
    until_put_off(1, 30);
    let elsewhere = format!(
        "location: http://127.0.0.1:{}/elsewhere\r\n",
        listeners.receiver.port()
    );
    listeners.receiver.answer(302, &elsewhere);
    make_due(&world);
    until_put_off(2, 200);
    until_log(&mut worker, "answers 302");
    listeners.smtp.restart().unwrap();
    listeners.receiver.answer(200, "");
    make_due(&world);
    until_all_is_told(&world);
    world.end(worker);

    let told = listeners.receiver.told();
    let same: BTreeSet<_> = told
        .iter()
        .map(|told| (told.header("webhook-id"), &told.body, &told.request))
        .collect();
    assert_eq!((told.len(), same.len()), (3, 1), "{told:?}");
    told.iter().for_each(assert_genuine);
    let mails = listeners.smtp.mails().unwrap();
    assert_eq!(mails.len(), 1);
    assert!(mails[0].text().contains(&format!("Job: {job}\n")));
    for channel in ["webhook", "email"] {
        assert_eq!(counted(&world, channel, "sent"), 1);
        assert_eq!(counted(&world, channel, "given_up"), 0);
    }
}

#[test]
fn a_worker_killed_between_the_end_of_a_job_and_its_telling_loses_nothing() {
    let mut listeners = Listeners::new();
    listeners.set("NOTIFY__EMAIL", None);
    let world = listeners.world([1]);
    // One that ends where nobody tells anything.
    let line = "--json backup 1 --type files";
    let made = world
        .product
        .run_command(listeners.command(&world, line))
        .document();
    assert_eq!(waiting(&world), 1);
    listeners.receiver.hang();
    let worker = world.start(listeners.command(&world, "worker"));
    eventually("it is being told", || listeners.receiver.waiting() == 1);
    world.kill(worker);
    assert_eq!(waiting(&world), 1);

    listeners.receiver.answer(200, "");
    make_due(&world);
    let worker = world.start(listeners.command(&world, "worker"));
    until_all_is_told(&world);
    world.end(worker);
    let told = listeners.receiver.told();
    assert_eq!(told.len(), 2);
    for told in &told {
        assert_eq!(document(told)["data"]["job_id"], made["job_id"]);
        assert_eq!(document(told)["data"]["snapshot_id"], made["snapshot_id"]);
        // So that a receiver sees the repeat.
        let id = |told: &xtask::receiver::Told| told.header("webhook-id").map(str::to_owned);
        assert_eq!(id(told), id(&listeners.receiver.told()[0]));
    }
    assert_eq!(counted(&world, "webhook", "sent"), 1);
}

#[test]
fn two_workers_tell_each_end_once() {
    const CUSTOMERS: u32 = 5;
    let listeners = Listeners::new();
    let world = listeners.world(1..=CUSTOMERS);
    let workers = [(); 2].map(|()| world.start(listeners.command(&world, "worker")));
    let mut ends = BTreeSet::new();
    for _ in 0..2 {
        let jobs: Vec<_> = (1..=CUSTOMERS)
            .map(|id| world.queue(id, BackupType::Files))
            .collect();
        for job in jobs {
            world.completed(job);
            ends.insert(job.to_string());
        }
    }
    until_all_is_told(&world);
    for worker in workers {
        world.end(worker);
    }
    let told = listeners.receiver.told();
    let jobs: BTreeSet<_> = told
        .iter()
        .map(|told| document(told)["data"]["job_id"].to_string())
        .collect();
    assert_eq!((told.len(), jobs), (ends.len(), ends.clone()));
    let mails = listeners.smtp.mails().unwrap();
    let subjects: BTreeSet<_> = mails.iter().map(|mail| mail.text()).collect();
    assert_eq!((mails.len(), subjects.len()), (ends.len(), ends.len()));
}

#[test]
fn a_receiver_that_hangs_holds_up_no_backup_and_no_mail() {
    const CUSTOMERS: u32 = 6;
    let listeners = Listeners::new();
    let world = listeners.world(1..=CUSTOMERS);
    listeners.receiver.hang();
    let mut worker = world.start(listeners.command(&world, "worker"));
    for round in 1..=2 {
        let jobs: Vec<_> = (1..=CUSTOMERS)
            .map(|id| world.queue(id, BackupType::Files))
            .collect();
        for job in jobs {
            world.completed(job);
        }
        let number = usize::try_from(CUSTOMERS * round).unwrap();
        worker.until("the mails are sent", || {
            listeners.smtp.mails().unwrap().len() == number
        });
    }
    assert!(listeners.receiver.waiting() > 0);
    assert_eq!(counted(&world, "webhook", "sent"), 0);
    // A mail is there before it is noted that it was sent.
    eventually("only what hangs waits", || waiting(&world) == CUSTOMERS * 2);
    // Nor the end of the worker.
    let begun = std::time::Instant::now();
    world.end(worker);
    assert!(begun.elapsed() < std::time::Duration::from_secs(12));
}

#[test]
fn whatever_a_customer_calls_himself_his_mail_says_only_what_happened() {
    const HOSTILE: &str =
        "Win a prize\\r\\nBcc: all@victim.example\\r\\n\\r\\nhttps://evil.example <b>\\u0000";
    let listeners = Listeners::with_mail("tls", &["gone@shop-6.example"]);
    let world = listeners.world(1..=8);
    let set = |id: u32, email: &str| {
        world.sql(&format!(
            "UPDATE shophosting_db.customers SET email = {email}, company_name = '{HOSTILE}', domain = '{HOSTILE}' WHERE id = {id}"
        ));
    };
    set(1, "'o''k+x@shop-1.example'");
    set(2, "'a@shop-2.example\\r\\nBcc: all@victim.example'");
    set(3, "'a@shop-3.example, all@victim.example'");
    set(4, "'Win a prize <all@victim.example>'");
    set(5, "''");
    set(6, "'gone@shop-6.example'");
    set(7, "'a@shop-7.example>\\r\\nDATA'");
    set(8, "'last@shop-8.example'");
    let worker = world.start(listeners.command(&world, "worker"));
    for id in 1..=8 {
        world.completed(world.queue(id, BackupType::Files));
    }
    until_all_is_told(&world);
    let log = world.end(worker);
    let mails = listeners.smtp.mails().unwrap();
    let to: BTreeSet<_> = mails
        .iter()
        .flat_map(|mail| mail.headers("X-Rcpt"))
        .collect();
    assert_eq!(to, ["last@shop-8.example", "o'k+x@shop-1.example"].into());
    assert_eq!(mails.len(), 2);
    for mail in &mails {
        let mut names = mail.header_names();
        names.retain(|name| !name.starts_with("X-"));
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "Auto-Submitted",
                "Content-Transfer-Encoding",
                "Content-Type",
                "Date",
                "From",
                "MIME-Version",
                "Message-ID",
                "Subject",
                "To"
            ]
        );
        let text = mail.text();
        for word in ["prize", "evil", "victim", "<b>", "Shop:"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
    assert_eq!(counted(&world, "email", "sent"), 2);
    assert_eq!(counted(&world, "email", "given_up"), 6);
    for (reason, number) in [
        ("the customer's address is no email address", 4),
        ("the customer has no email address", 1),
        ("takes no mail: it answers 550 5.1.1", 1),
    ] {
        assert_eq!(log.matches(reason).count(), number, "{reason}: {log}");
    }
    // They are in no log either, nor is what a server says of them.
    for word in ["victim", "gone@", "no such user", "k+x@", "last@"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
    assert_eq!(counted(&world, "webhook", "sent"), 8);
}

#[test]
fn what_nobody_takes_for_a_day_or_ever_is_given_up() {
    let mut listeners = Listeners::new();
    listeners.set("NOTIFY__EMAIL", None);
    let world = listeners.world([1]);
    listeners.receiver.answer(500, "");
    let mut worker = world.start(listeners.command(&world, "worker"));
    world.completed(world.queue(1, BackupType::Files));
    until_log(&mut worker, "tried again in 60 s");
    world.sql(
        "UPDATE shophosting_db.backup_notifications SET due_at = 0, created_at = created_at - 24 * 60 * 60 * 1000",
    );
    until_all_is_told(&world);
    assert_eq!(listeners.receiver.told().len(), 2);
    assert_eq!(counted(&world, "webhook", "given_up"), 1);
    until_log(&mut worker, "is given up");

    listeners.receiver.answer(410, "");
    world.completed(world.queue(1, BackupType::Files));
    eventually("it is given up at once", || {
        counted(&world, "webhook", "given_up") == 2
    });
    assert_eq!(listeners.receiver.told().len(), 3);
    assert_eq!(counted(&world, "webhook", "sent"), 0);
    world.end(worker);
}

#[test]
fn what_is_told_goes_over_connections_alone_that_nobody_else_can_read() {
    let mut listeners = Listeners::with_mail("starttls", &[]);
    make_certificate(listeners.dir(), "DNS:localhost").unwrap();
    let port = port::free().unwrap();
    let (dir, plain) = (listeners.dir().display(), listeners.receiver.port());
    let rules = format!(
        "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {dir}/certificate.pem; ssl_certificate_key {dir}/key.pem;
         location / {{ proxy_pass http://127.0.0.1:{plain}; proxy_set_header Host $host; }} }}"
    );
    let _nginx = Nginx::start(listeners.dir(), &rules, &[port]).unwrap();
    let both = listeners.dir().join("both.pem");
    let trusted = ["certificate.pem"].map(|name| fs::read(listeners.dir().join(name)).unwrap());
    let of_smtp = fs::read(listeners.smtp.certificate()).unwrap();
    fs::write(&both, [trusted.concat(), of_smtp].concat()).unwrap();
    let url = format!("https://localhost:{port}/hooks");
    listeners.set("NOTIFY__WEBHOOK__URL", Some(&url));
    let world = listeners.world([1]);

    // Neither certificate is of an authority that this machine trusts.
    let mut command = listeners.command(&world, "worker");
    command.env_remove("SSL_CERT_FILE");
    let mut worker = world.start(command);
    world.completed(world.queue(1, BackupType::Files));
    until_log(&mut worker, "webhook at https://localhost");
    until_log(&mut worker, "SMTP server localhost");
    world.end(worker);
    assert_eq!(
        (
            listeners.receiver.told().len(),
            listeners.smtp.mails().unwrap().len()
        ),
        (0, 0)
    );

    make_due(&world);
    let mut command = listeners.command(&world, "worker");
    command.env("SSL_CERT_FILE", &both);
    let worker = world.start(command);
    until_all_is_told(&world);
    world.end(worker);
    assert_genuine(&listeners.told(1)[0]);
    let mails = listeners.smtp.mails().unwrap();
    assert_eq!(mails.len(), 1);
    assert_eq!(mails[0].headers("X-Tls"), ["True"]);

    // A server without TLS, or somebody in the middle who takes it away, gets no mail and no password.
    let unprotected = Listeners::with_mail("none", &[]);
    listeners.set("NOTIFY__WEBHOOK", None);
    let port = unprotected.smtp.port().to_string();
    listeners.set("NOTIFY__EMAIL__PORT", Some(&port));
    let mut worker = world.start(listeners.command(&world, "worker"));
    world.completed(world.queue(1, BackupType::Files));
    until_log(&mut worker, "STARTTLS is not supported");
    world.end(worker);
    assert_eq!(unprotected.smtp.mails().unwrap().len(), 0);
}
