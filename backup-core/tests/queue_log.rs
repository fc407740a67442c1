//! What the queue lets the log know. In a process of its own: where other tests use the queue without a log, tracing may
//! take it that nobody wants to hear of it.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::config::{Config, Environment, Origin, QueueConfig};
use backup_core::error::{ErrorKind, Result};
use backup_core::jobs::Queue;
use xtask::redis::Redis;

/// A worker who waits that long was forgotten.
const LONG: Duration = Duration::from_secs(60);

fn config(url: &str) -> Result<QueueConfig> {
    let text = format!(
        "[database]\nurl = 'sqlite:///b.db'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n[queue]\nredis_url = '{url}'\n"
    );
    let origin = Origin::File("/etc/backup.toml".into());
    Config::read(origin, &text, &Environment::default()).map(|config| config.queue)
}

fn queue_at(url: &str) -> Queue {
    Queue::new(&config(url).unwrap()).unwrap()
}

/// All that this thread logs while it lives.
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    fn capture() -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let writer = text.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || Writer(writer.clone()))
            .finish();
        Self {
            text,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    /// What was said since the last look, as levels, such as `WARN INFO`.
    fn levels(&self, password: &str) -> String {
        let text = String::from_utf8(std::mem::take(&mut *self.text.lock().unwrap())).unwrap();
        assert!(!text.contains(password), "{text}");
        let ours = text.lines().filter(|line| line.contains("backup_core"));
        let levels = ours.filter_map(|line| line.split_whitespace().nth(1));
        levels.collect::<Vec<_>>().join(" ")
    }
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_outage_is_told_once_and_so_is_its_end() {
    let log = Log::capture();
    let mut redis = Redis::start().unwrap();
    let password = redis.password().to_owned();
    let queue = queue_at(&redis.url());
    let short = Duration::from_millis(50);
    queue.wake("default", 1).await;
    queue.wait("default", LONG).await;
    assert_eq!(log.levels(&password), "");
    for _ in 0..2 {
        redis.kill();
        for job in 0..3 {
            queue.wake("default", job).await;
            queue.wait("default", short).await;
        }
        assert_eq!(log.levels(&password), "WARN");
        redis.restart().unwrap();
        queue.wait("default", short).await;
        queue.wake("default", 1).await;
        queue.wait("default", LONG).await;
        assert_eq!(log.levels(&password), "INFO");
    }

    // Full: it can be waited on, but not pushed to.
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    for job in 0..3 {
        queue.wake("default", job).await;
        queue.wait("default", short).await;
    }
    assert_eq!(log.levels(&password), "WARN");
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    queue.wake("default", 1).await;
    assert_eq!(log.levels(&password), "INFO");
}

#[tokio::test]
async fn the_password_is_nowhere_to_be_seen() {
    let log = Log::capture();
    let redis = Redis::start().unwrap();
    let password = redis.password();
    let right = queue_at(&redis.url());
    right.wake("default", 1).await;
    assert_eq!(redis.command(&["LLEN", "backups"]).unwrap(), "1");
    let wrong = format!("wrong-{password}");
    for url in [
        redis.url().replace(password, &wrong),
        format!("redis://somebody:{wrong}@127.0.0.1:{}", redis.port()),
        format!("unix://{}?pass={wrong}", redis.socket().display()),
    ] {
        let queue = queue_at(&url);
        let debug = format!("{queue:?}");
        assert!(
            debug.contains("***") && !debug.contains(password),
            "{debug}"
        );
        // Each of the two is refused by itself.
        queue.wake("default", 1).await;
        queue.wait("default", Duration::from_secs(1)).await;
        assert_eq!(log.levels(password), "WARN WARN");
    }
    for bad in ["redis://:{}@h/x", "rediss://:{}@h", "redis://:{}@h:port"] {
        let error = config(&bad.replace("{}", password)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(!format!("{error:?}").contains(password), "{error:?}");
    }
    assert!(!format!("{right:?}").contains(password));
}
