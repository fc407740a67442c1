//! What pages promise, rendered as the server renders them.

use leptos::prelude::*;
use leptos_meta::provide_meta_context;
use leptos_router::components::Router;
use leptos_router::location::RequestUrl;

use super::backup::Details;
use super::backups::Backups;
use crate::live::Notices;
use crate::model::{
    Backup, BackupPage, BackupsPage, Flash, Job, JobStatus, JobType, Part, Source, Viewer,
};

/// 20 November 2026, 02:00 UTC.
const NOW: i64 = 1_795_140_000_000;
const HOUR: i64 = 3_600_000;

#[test]
fn a_backup_offers_only_what_it_holds() {
    for (holds, offered, missing) in [
        (Part::Db, &["db"][..], &["both", "files"][..]),
        (Part::Files, &["files"], &["both", "db"]),
        (Part::Both, &["both", "db", "files"], &[]),
    ] {
        let mut page = page();
        page.manual = vec![backup("a1", Source::Manual, holds, 30)];
        // A part that it does not hold is not offered to those either who ask for it.
        let html = backups_html(page, "/backups?ask=restore&id=a1&type=both");
        let offer =
            |word: &&&str| html.contains(&format!("name=\"restore_type\" value=\"{word}\""));
        assert_eq!(
            offered.iter().filter(offer).count(),
            offered.len(),
            "{html}"
        );
        assert_eq!(missing.iter().filter(offer).count(), 0, "{html}");
    }
}

#[test]
fn a_restore_says_what_is_lost_before_it_asks_for_the_word() {
    let mut page = page();
    page.manual = vec![backup("a1", Source::Manual, Part::Both, 51)];
    let html = text(&backups_html(page, "/backups?ask=restore&id=a1"));
    for words in [
        "Orders placed in the 2 days since then will be lost.",
        "Visitors see a maintenance page from the start",
        "You can undo it: what is replaced becomes a backup. The newest 3 of those are kept.",
        "If it fails, your shop is put back exactly as it is now.",
        "Type RESTORE to confirm",
    ] {
        assert!(html.contains(words), "{words}\n{html}");
    }
}

#[test]
fn a_restore_is_undone_by_the_backup_that_was_made_before_it() {
    let mut page = page();
    page.pre_restore = vec![backup("b1", Source::PreRestore, Part::Both, 2)];
    let html = backups_html(page, "/backups?ask=restore&id=b1");
    assert!(html.contains("action=\"/backups/b1/restore\""), "{html}");
    let html = text(&html);
    for words in [
        "Undo the restore?",
        "Fri 20 Nov 2026, 00:00",
        "What you choose goes back to how it was then, the moment before that restore.",
        "Orders placed in the 2 hours since then will be lost.",
        "what is replaced becomes a backup",
        "The newest 3 are kept.",
    ] {
        assert!(html.contains(words), "{words}\n{html}");
    }
}

#[test]
fn the_newest_restore_that_was_done_offers_to_be_undone_unless_something_runs() {
    const UNDO: &str = "Undo this restore …";
    let mut page = page();
    let restored = |id, kept: &str| Job {
        id,
        kept_snapshot: Some(kept.into()),
        ..ended_restore(None)
    };
    let failed = Job {
        id: 9,
        ..ended_restore(Some("error"))
    };
    page.jobs = vec![failed, restored(8, "b2"), restored(6, "b1")];
    let html = backups_html(page.clone(), "/backups");
    assert_eq!(html.matches(UNDO).count(), 1, "{html}");
    assert!(
        html.contains("href=\"/backups?ask=restore&amp;id=b2\""),
        "{html}"
    );
    page.jobs[0] = Job { id: 9, ..running() };
    assert!(!backups_html(page.clone(), "/backups").contains(UNDO));

    // Whoever watched it without JavaScript is offered it where he is told that it is done.
    page.jobs = vec![restored(8, "b2")];
    let html = backups_html(page, "/backups?watched=8");
    let status = html.split("role=\"status\"").nth(2).unwrap_or_default();
    let status = status.split("</p>").next().unwrap_or_default();
    assert!(status.contains("id=b2") && status.contains(UNDO), "{html}");
}

#[test]
fn a_restore_that_did_not_end_well_is_told_as_it_ended() {
    for (failure, title, reason, can_be_dismissed) in [
        (
            "rolled_back",
            "The restore was rolled back",
            "The reason.",
            true,
        ),
        (
            "interrupted",
            "The restore was interrupted",
            "The reason.",
            true,
        ),
        ("error", "The restore failed", "The reason.", true),
        (
            "stuck",
            "The restore needs our help",
            "Our team has been told and takes care of it. Your shop shows its maintenance page until then",
            false,
        ),
    ] {
        let mut page = page();
        page.jobs = vec![ended_restore(Some(failure))];
        let html = backups_html(page, "/backups");
        let alert = html.split("role=\"alert\"").nth(1).unwrap_or_default();
        let alert = alert.split("</div>").next().unwrap_or_default();
        assert!(alert.contains(title) && alert.contains(reason), "{html}");
        assert_eq!(html.contains("/dismiss\""), can_be_dismissed, "{html}");
    }
}

#[test]
fn a_stuck_restore_stays_in_sight_whatever_came_after_it_and_lets_nothing_begin_but_a_deletion() {
    const WHY: &str = "Our team is still looking after your last restore.";
    let mut page = page();
    page.manual = vec![backup("a1", Source::Manual, Part::Both, 30)];
    let newer = Job {
        id: 9,
        status: JobStatus::Completed,
        ..running()
    };
    page.jobs = vec![newer, ended_restore(Some("stuck"))];
    for address in [
        "/backups",
        "/backups?ask=restore&id=a1",
        "/backups?ask=backup",
    ] {
        let html = backups_html(page.clone(), address);
        let alert = html.split("role=\"alert\"").nth(1).unwrap_or_default();
        assert!(alert.contains("The restore needs our help"), "{html}");
        assert!(text(&html).contains(WHY), "{html}");
        for action in ["/backups/create", "/backups/a1/restore"] {
            assert!(!html.contains(&format!("action=\"{action}\"")), "{html}");
        }
    }
    // Its end is told at once, without JavaScript too.
    let html = backups_html(page.clone(), "/backups");
    assert!(
        html.contains("content=\"5; url=/backups?watched=7\""),
        "{html}"
    );
    page.jobs[1] = ended_restore(None);
    let html = backups_html(page.clone(), "/backups?watched=7");
    assert!(
        html.contains("Your shop is restored and open again."),
        "{html}"
    );

    page.jobs[1] = ended_restore(Some("stuck"));
    let details = BackupPage {
        viewer: viewer(),
        backup: Some(page.manual[0].clone()),
        replaced_kept: 3,
        jobs: page.jobs,
    };
    let html = details_html(details, "/backups/a1?ask=delete");
    assert!(html.contains("action=\"/backups/a1/delete\""), "{html}");
    assert!(!html.contains("ask=restore"), "{html}");
}

#[test]
fn a_restore_that_was_interrupted_and_finished_later_says_so() {
    const WORDS: &str = "It was interrupted and finished on its own.";
    for recovered in [true, false] {
        let mut page = page();
        page.jobs = vec![Job {
            recovered,
            ..ended_restore(None)
        }];
        let html = backups_html(page.clone(), "/backups");
        assert_eq!(html.contains(WORDS), recovered, "{html}");
        let html = backups_html(page, "/backups?watched=7");
        assert_eq!(html.matches(WORDS).count(), if recovered { 2 } else { 0 });
    }
}

#[test]
fn a_restore_that_waits_does_not_say_that_the_shop_is_closed_already() {
    let mut page = page();
    for (status, words) in [
        (
            JobStatus::Pending,
            "Visitors see a maintenance page as soon as it starts.",
        ),
        (
            JobStatus::Running,
            "Visitors see a maintenance page until it is done.",
        ),
    ] {
        page.jobs = vec![Job {
            job_type: JobType::Restore,
            status,
            ..running()
        }];
        let html = text(&backups_html(page.clone(), "/backups"));
        assert!(html.contains(words), "{status:?}\n{html}");
    }
}

#[test]
fn what_visitors_see_is_said_at_every_step_of_a_restore() {
    const UNTIL_DONE: &str = "Visitors see a maintenance page until it is done.";
    const OPEN: &str = "Your shop stays open until everything is ready.";
    const MOMENT: &str = "Visitors see a maintenance page for a moment.";
    const BACK: &str =
        "Your shop is back online. What was replaced is being saved, so that you can undo this.";
    for (phase, closed, online) in [
        ("restoring_files", UNTIL_DONE, OPEN),
        ("swapping", UNTIL_DONE, MOMENT),
        ("starting", UNTIL_DONE, MOMENT),
        ("keeping", BACK, BACK),
    ] {
        for (is_online, words) in [(false, closed), (true, online)] {
            let mut page = page();
            page.jobs = vec![Job {
                job_type: JobType::Restore,
                phase: Some(phase.into()),
                online: is_online,
                ..running()
            }];
            let html = text(&backups_html(page, "/backups"));
            assert!(html.contains(words), "{phase} {is_online}\n{html}");
        }
    }
}

#[test]
fn a_full_shelf_says_which_backup_goes_next() {
    let mut page = page();
    page.manual = (0..5)
        .map(|age| backup(&format!("a{age}"), Source::Manual, Part::Db, age * 24))
        .collect();
    let html = backups_html(page, "/backups?ask=backup&type=db");
    assert_eq!(html.matches("goes next").count(), 1, "{html}");
    let text = text(&html);
    assert!(text.contains("5 of 5 kept"), "{text}");
    assert!(
        text.contains("so the oldest is deleted: Mon 16 Nov 2026, 02:00"),
        "{text}"
    );
}

#[test]
fn while_a_job_is_active_nothing_else_can_be_started_and_the_page_says_why() {
    let mut page = page();
    page.manual = vec![backup("a1", Source::Manual, Part::Both, 30)];
    page.jobs = vec![running()];
    for address in [
        "/backups",
        "/backups?ask=restore&id=a1",
        "/backups?ask=backup",
    ] {
        let html = backups_html(page.clone(), address);
        assert!(text(&html).contains("A backup is running."), "{html}");
        for action in ["/backups/create", "/backups/a1/restore"] {
            assert!(!html.contains(&format!("action=\"{action}\"")), "{html}");
        }
    }
}

#[test]
fn without_script_a_page_refreshes_itself_while_a_job_is_active_but_never_under_a_form() {
    let mut page = page();
    let refreshes = |page: &BackupsPage, address| {
        backups_html(page.clone(), address).contains(
            "<noscript><meta http-equiv=\"refresh\" content=\"5; url=/backups?watched=7\"></noscript>",
        )
    };
    assert!(!refreshes(&page, "/backups"));
    page.jobs = vec![running()];
    assert!(refreshes(&page, "/backups"));
    assert!(!refreshes(&page, "/backups?ask=cancel"));
}

#[test]
fn without_script_a_page_says_that_the_job_is_done_that_was_watched_while_that_is_news() {
    const DONE: &str = "Your backup is done.";
    let mut page = page();
    page.jobs = vec![running()];
    assert!(!backups_html(page.clone(), "/backups?watched=7").contains(DONE));
    let ended = |time: &str| Job {
        status: JobStatus::Completed,
        completed_at: Some(time.into()),
        ..running()
    };
    page.jobs = vec![ended("2026-11-20T01:59:50Z")];
    let html = backups_html(page.clone(), "/backups?watched=7");
    let status = html.split("role=\"status\"").nth(2).unwrap_or_default();
    assert!(status.contains(DONE), "{html}");
    let details = BackupPage {
        viewer: viewer(),
        backup: Some(backup("a1", Source::Manual, Part::Both, 30)),
        replaced_kept: 3,
        jobs: page.jobs.clone(),
    };
    assert!(details_html(details, "/backups/a1?watched=7").contains(DONE));
    for address in ["/backups", "/backups?watched=6", "/backups?watched=x"] {
        assert!(
            !backups_html(page.clone(), address).contains(DONE),
            "{address}"
        );
    }
    page.jobs = vec![ended("2026-11-20T01:50:00Z")];
    assert!(!backups_html(page.clone(), "/backups?watched=7").contains(DONE));
    page.jobs[0].status = JobStatus::Failed;
    assert!(!backups_html(page, "/backups?watched=7").contains(DONE));
}

#[test]
fn whoever_logged_in_elsewhere_is_not_offered_to_log_out_here() {
    let mut page = page();
    assert!(backups_html(page.clone(), "/backups").contains("action=\"/logout\""));
    page.viewer.account_page = Some("https://shop.example/login".into());
    let html = backups_html(page, "/backups");
    assert!(!html.contains("/logout"), "{html}");
    let link = html.split("href=\"https://shop.example/login\"").nth(1);
    let link = link.and_then(|rest| rest.split('>').next());
    assert!(
        link.is_some_and(|rest| rest.contains("rel=\"external\"")),
        "{html}"
    );
}

#[test]
fn a_refusal_is_an_alert_and_what_was_done_is_not() {
    for success in [true, false] {
        let mut page = page();
        page.viewer.flash = Some(Flash {
            success,
            message: "So it is.".into(),
            undo: None,
            is_end: false,
        });
        let html = backups_html(page, "/backups");
        let alert = html.split("role=\"alert\"").nth(1).unwrap_or_default();
        let alert = alert.split("</p>").next().unwrap_or_default();
        assert_eq!(alert.contains("So it is."), !success, "{html}");
        assert_eq!(html.matches("So it is.").count(), 1, "{html}");
    }
}

#[test]
fn progress_says_nothing_of_what_is_left_once_more_is_done_than_there_was_to_do() {
    let mut page = page();
    for (total, amount, left) in [
        (
            Some(1_240_000_000),
            "340 MB of 1.2 GB · 24 MB/s",
            "about 40 seconds left",
        ),
        (Some(340_000_000), "340 MB of 340 MB · 24 MB/s", ""),
        (Some(300_000_000), "340 MB · 24 MB/s", ""),
        (None, "340 MB · 24 MB/s", ""),
    ] {
        page.jobs = vec![Job {
            bytes_total: total,
            ..running()
        }];
        let html = backups_html(page.clone(), "/backups");
        let figures = html.split("job-figures").nth(1).unwrap_or_default();
        let figures = figures.split("</p>").next().unwrap_or_default();
        assert!(
            figures.contains(&format!("<span>{amount}</span>")),
            "{figures}"
        );
        assert_eq!(
            figures.contains("left"),
            !left.is_empty(),
            "{total:?} {figures}"
        );
        assert!(figures.contains(left), "{total:?} {figures}");
        let knows = total.is_some_and(|total| total >= 340_000_000);
        assert_eq!(html.contains("not known yet"), !knows, "{total:?} {html}");
    }
}

#[test]
fn daily_backups_are_promised_only_where_they_are_made() {
    const PROMISE: &str = "Made for you every night";
    let mut page = page();
    page.has_daily = false;
    assert!(!backups_html(page.clone(), "/backups").contains("Daily backups"));
    page.has_daily = true;
    let html = backups_html(page.clone(), "/backups");
    assert!(
        html.contains("Daily backups") && !html.contains(PROMISE),
        "{html}"
    );
    page.daily = vec![backup("d1", Source::Daily, Part::Both, 3)];
    assert!(backups_html(page, "/backups").contains(PROMISE));
}

#[test]
fn a_failure_is_told_until_it_is_dismissed() {
    let mut page = page();
    page.jobs = vec![Job {
        status: JobStatus::Failed,
        failure: Some("error".into()),
        error_message: Some("The disk is full.".into()),
        completed_at: Some("2026-11-20T01:59:00Z".into()),
        ..running()
    }];
    let html = backups_html(page.clone(), "/backups");
    let alert = html.split("role=\"alert\"").nth(1).unwrap_or_default();
    let alert = alert.split("</div>").next().unwrap_or_default();
    assert!(alert.contains("The backup failed"), "{html}");
    assert!(alert.contains("The disk is full."), "{html}");
    // It changes by itself, and would be read aloud each time.
    assert!(!alert.contains("ago"), "{html}");
    assert!(html.contains("1 minute ago"), "{html}");
    assert!(
        html.contains("action=\"/backups/jobs/7/dismiss\""),
        "{html}"
    );
    page.jobs[0].dismissed = true;
    let html = backups_html(page, "/backups");
    assert!(!html.contains("/dismiss"), "{html}");
    assert!(html.contains("The disk is full."), "{html}");
}

#[test]
fn what_a_customer_writes_is_text() {
    const NOTE: &str = "<script>alert(1)</script>\"'&";
    let mut page = page();
    let mut backup = backup("a1", Source::Manual, Part::Both, 30);
    backup.note = Some(NOTE.into());
    page.viewer.name = NOTE.into();
    page.manual = vec![backup.clone()];
    let details = BackupPage {
        viewer: page.viewer.clone(),
        backup: Some(backup),
        replaced_kept: 3,
        jobs: Vec::new(),
    };
    for html in [
        backups_html(page, "/backups?ask=delete&id=a1"),
        details_html(details, "/backups/a1"),
    ] {
        assert!(html.contains("&lt;script&gt;alert(1)"), "{html}");
        assert!(!html.contains("<script>alert"), "{html}");
    }
}

#[test]
fn a_backup_that_was_proven_says_when_and_no_other_does() {
    for proven in [None, Some(NOW - 26 * HOUR)] {
        let page = BackupPage {
            backup: Some(Backup {
                proven,
                ..backup("a1", Source::Daily, Part::Both, 30)
            }),
            replaced_kept: 3,
            jobs: vec![],
            viewer: viewer(),
        };
        let html = text(&details_html(page, "/backups/a1"));
        let said = "Thu 19 Nov 2026, 00:00 , by restoring it apart from your shop.";
        assert_eq!(html.contains("Proven restorable"), proven.is_some());
        assert_eq!(html.contains(said), proven.is_some(), "{html}");
    }
}

#[test]
fn only_backups_that_the_customer_made_can_be_deleted() {
    for (source, deletable) in [
        (Source::Manual, true),
        (Source::Daily, false),
        (Source::PreRestore, false),
    ] {
        let page = BackupPage {
            viewer: viewer(),
            backup: Some(backup("a1", source, Part::Both, 30)),
            replaced_kept: 3,
            jobs: Vec::new(),
        };
        let html = details_html(page, "/backups/a1?ask=delete");
        let form = "action=\"/backups/a1/delete\"";
        assert_eq!(html.contains(form), deletable, "{source:?}\n{html}");
    }
}

#[test]
fn a_page_has_no_style_and_no_script_inline() {
    let mut page = page();
    page.jobs = vec![running()];
    page.daily = vec![backup("d1", Source::Daily, Part::Both, 3)];
    let html = backups_html(page, "/backups?ask=cancel");
    for forbidden in [" style=", "<style", "<script", " onclick="] {
        assert!(!html.contains(forbidden), "{forbidden}\n{html}");
    }
}

fn backups_html(page: BackupsPage, address: &str) -> String {
    html(address, || view! { <Backups page /> })
}

fn details_html(page: BackupPage, address: &str) -> String {
    html(address, || view! { <Details page /> })
}

fn html<V: IntoView + 'static>(address: &str, page: impl FnOnce() -> V + Send + 'static) -> String {
    let owner = Owner::new();
    let html = owner.with(|| {
        provide_context(RequestUrl::new(address));
        provide_meta_context();
        Notices::provide();
        view! { <Router>{page()}</Router> }.to_html()
    });
    owner.cleanup();
    // The framework's marks between texts say nothing to anybody.
    html.replace("<!>", "").replace("<!---->", "")
}

/// The words alone, one space apart.
fn text(html: &str) -> String {
    let words = html.split('<').flat_map(|piece| {
        piece
            .split_once('>')
            .map_or(piece, |(_, text)| text)
            .split_whitespace()
    });
    words.collect::<Vec<_>>().join(" ")
}

fn page() -> BackupsPage {
    BackupsPage {
        viewer: viewer(),
        manual: Vec::new(),
        pre_restore: Vec::new(),
        daily: Vec::new(),
        has_daily: true,
        daily_days: 30,
        kept: 5,
        replaced_kept: 3,
        jobs: Vec::new(),
    }
}

fn viewer() -> Viewer {
    Viewer {
        name: "Lampenladen Nord".into(),
        zone: "UTC".into(),
        now: NOW,
        flash: None,
        account_page: None,
    }
}

fn backup(id: &str, source: Source, holds: Part, hours_old: i64) -> Backup {
    Backup {
        id: id.into(),
        source,
        time: NOW - hours_old * HOUR,
        holds,
        note: None,
        bytes: Some(1_240_000_000),
        bytes_added: Some(12_000_000),
        database_bytes: Some(84_000_000),
        files: Some(18_240),
        proven: None,
    }
}

fn running() -> Job {
    Job {
        id: 7,
        job_type: JobType::Backup,
        backup_type: Part::Both,
        snapshot_id: None,
        source: None,
        status: JobStatus::Running,
        online: false,
        kept_snapshot: None,
        recovered: false,
        dismissed: false,
        failure: None,
        error_message: None,
        created_at: Some("2026-11-20T01:58:00Z".into()),
        started_at: Some("2026-11-20T01:58:00Z".into()),
        completed_at: None,
        phase: Some("saving".into()),
        bytes_done: 340_000_000,
        bytes_total: Some(1_240_000_000),
        files_done: 3000,
        bytes_per_second: Some(24_000_000),
        cancel_requested: false,
        cancellable: true,
    }
}

/// A restore that ended a minute ago, well or for this reason.
fn ended_restore(failure: Option<&str>) -> Job {
    let status = match failure {
        Some(_) => JobStatus::Failed,
        None => JobStatus::Completed,
    };
    Job {
        job_type: JobType::Restore,
        status,
        failure: failure.map(Into::into),
        error_message: failure.map(|_| "The reason.".into()),
        completed_at: Some("2026-11-20T01:59:50Z".into()),
        phase: None,
        cancellable: false,
        ..running()
    }
}
