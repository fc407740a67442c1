//! From a click in the dashboard until it says that the backup is complete, by way of server, queue and worker.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xtask::sandbox::werkzeug_hash;
use xtask::testbed::{PLATFORM_SCHEMA, TestBed};

use super::data::Shop;
use super::line::Line;
use crate::bench_web::{PASSWORD, Server};
use crate::measure;

const CLICKS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(120);

/// What each of a few clicks took, 1 % of the shop changed before each.
pub fn measure(bed: &TestBed, binary: &Path, shop: &Shop, line: &Line) -> Result<Vec<Duration>> {
    let id = shop.customer.id;
    bed.mariadb().sql(&format!(
        "UPDATE {PLATFORM_SCHEMA}.customers SET password_hash = '{}' WHERE id = {id}",
        werkzeug_hash(PASSWORD)?
    ))?;
    let mut command = bed.product(binary);
    line.lead("MANUAL", &bed.manual_repository(), &mut command);
    line.lead("DAILY", &bed.daily_repository(), &mut command);
    let server = Server::start_as(command.args(["serve", "--worker"]))?;
    let cookie = server.log_in(id)?;
    let mut times = Vec::new();
    for _ in 0..CLICKS {
        measure::check_interrupted()?;
        shop.change(bed)?;
        let begun = Instant::now();
        let body = "{\"backup_type\":\"both\"}";
        let answer = server.exchange(
            &format!(
                "POST /backups/create HTTP/1.1\r\nAccept: application/json\r\nCookie: {cookie}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            ),
            body,
        )?;
        ensure!(
            answer.starts_with("HTTP/1.1 200"),
            "no job was made: {answer}"
        );
        let head = format!("GET /api/backups/status HTTP/1.1\r\nCookie: {cookie}\r\n");
        loop {
            let answer = server.exchange(&head, "")?;
            if answer.contains("\"has_active_job\":false") {
                break;
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "the backup did not come to its end: {answer}"
            );
            thread::sleep(Duration::from_millis(5));
        }
        times.push(begun.elapsed());
    }
    Ok(times)
}
