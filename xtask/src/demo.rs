//! The dashboard to play with: shops that can be broken and restored, and what to try.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use xtask::sandbox::{Options, Owner, Sandbox};

use crate::measure;

const PORT: u16 = 3000;
const PAUSE: Duration = Duration::from_millis(200);

/// Run the sandbox with the product at `binary` until somebody interrupts.
pub fn run(binary: &Path) -> Result<()> {
    println!("ShopHosting Backups: the dashboard, with two shops to break and to restore.\n");
    let started = Instant::now();
    let options = Options {
        port: Some(PORT),
        customers: vec![1, 2],
        posts: 60,
        images: 24,
        daily: 10,
    };
    let sandbox = Sandbox::start(binary, &options, |step| {
        if !step.is_empty() {
            println!("{:>6.1} s  {step}", started.elapsed().as_secs_f64());
        }
        measure::check_interrupted()
    })?;
    println!(
        "{:>6.1} s  two backups that customer 1 made himself",
        started.elapsed().as_secs_f64()
    );
    sandbox.back_up(1, "both", "Before the new theme")?;
    measure::check_interrupted()?;
    sandbox.back_up(1, "db", "Prices for the sale are in")?;
    introduce(&sandbox);
    while measure::check_interrupted().is_ok() {
        if sandbox.revive_worker()? {
            println!(
                "The worker was killed, and is started again{}.",
                process_of(&sandbox)
            );
        }
        sandbox.check_alive()?;
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// The worker's process, to be killed by.
fn process_of(sandbox: &Sandbox) -> String {
    let process = sandbox.worker_process();
    process
        .map(|process| format!(": its process is {process} now"))
        .unwrap_or_default()
}

fn introduce(sandbox: &Sandbox) {
    println!("\nThe dashboard is at {}\n", sandbox.url());
    for owner in sandbox.owners() {
        let Owner {
            name,
            email,
            password,
            shop,
            customer,
        } = owner;
        println!("  {name}: log in as {email}, password: {password}");
        println!(
            "          its shop is at {shop} (admin: {shop}/wp-login.php, user admin, password: secret of shop {})",
            customer.id
        );
    }
    println!(
        "
What to try:
  - Log in as the first, make a backup of database & files, and watch it.
  - Break the shop: delete its front page as admin, or remove its files in
      {site}
    Restore the backup, and look at the shop meanwhile: visitors see a maintenance page, and then the shop is as it was.
  - Undo that restore: “Undo this restore …” is beside it, and what it replaced is listed as “Made before a restore”.
  - Restore again with the shop kept online, and look at it meanwhile: it is closed for a moment only.
  - Kill the worker while it restores, with
      kill -9 {worker}
    It is started again as its unit would do it, and the restore is finished or undone: the page tells which.
  - Restore a daily backup: the database alone, or the files alone.
  - Log in as the second in a private window: he knows nothing of the first.
  - Turn JavaScript off: all of it works.

Ctrl-C stops everything and leaves nothing.",
        worker = sandbox.worker_process().unwrap_or_default(),
        site = sandbox
            .owners()
            .first()
            .map(|owner| owner.customer.site().display().to_string())
            .unwrap_or_default()
    );
}
