//! Wake-ups: how a worker learns at once that there may be a job for him.
//!
//! The table of jobs is the truth, and workers also look there by themselves: a wake-up may be lost, doubled or late, and
//! nobody goes by what it says. Never: a failure here that reaches the caller; a caller who tells of a job held up for
//! more than half a second; a password shown.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult};
use secrecy::ExposeSecret;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::config::{QueueConfig, SecretUrl};
use crate::customer::DEFAULT_SERVER;
use crate::error::{Error, ErrorKind, Result};

/// The longest that a wake-up may hold up who sends it.
const WAKE_LIMIT: Duration = Duration::from_millis(450);

/// Wake-ups kept for workers who are away. What they find when they come back they find in the table.
const KEPT: isize = 1_000;

const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Between two attempts to reach a Redis that is away.
const PAUSE: Duration = Duration::from_secs(1);

/// How much sooner than we have to know Redis shall say that nothing came: it looks at its clock ten times a second.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// Nobody waits longer: it keeps the arithmetic of deadlines safe.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// The wake-ups of this process or, through Redis, of all machines. Clones are the same queue; any number of tasks may use it.
#[derive(Debug, Clone)]
pub struct Queue(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Embedded(Arc<Notify>),
    Redis(Arc<RedisQueue>),
}

impl Queue {
    /// The queue of the configuration: embedded, or a Redis list. Redis is connected to when it is needed.
    ///
    /// [`ErrorKind::Configuration`] for an address that can never work.
    pub fn new(config: &QueueConfig) -> Result<Self> {
        Ok(Self(match &config.redis_url {
            None => Kind::Embedded(Arc::default()),
            Some(url) => Kind::Redis(Arc::new(RedisQueue::new(url, &config.name)?)),
        }))
    }

    /// Tell a worker of this server that a job waits; with 0, that there is something else to do. It cannot fail, and takes half a second at most.
    pub async fn wake(&self, server: &str, job: u64) {
        match &self.0 {
            Kind::Embedded(notify) => notify.notify_one(),
            Kind::Redis(redis) => redis.wake(server, job).await,
        }
    }

    /// Try whether wake-ups for this server would be sent and waited for, beside its list and without waking anybody.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] where Redis is away, [`ErrorKind::Refused`] for what it says no to, [`ErrorKind::Configuration`] where the list's name has
    /// something else, or where Redis is too old to wait for parts of a second.
    pub async fn try_out(&self, server: &str) -> Result<()> {
        match &self.0 {
            Kind::Embedded(_) => Ok(()),
            Kind::Redis(redis) => redis.try_out(server).await,
        }
    }

    /// Wait until there may be a job for this server: for a wake-up, but never longer than `at_most`; whether one came. Woken or not, the
    /// caller looks at the table. When he drops it, the wake-up that was just on its way may be lost.
    pub async fn wait(&self, server: &str, at_most: Duration) -> bool {
        match &self.0 {
            Kind::Embedded(notify) => timeout(at_most, notify.notified()).await.is_ok(),
            Kind::Redis(redis) => redis.wait(server, at_most.min(LONGEST_WAIT)).await,
        }
    }
}

/// The lists of one Redis server.
struct RedisQueue {
    url: SecretUrl,
    name: String,
    client: Client,
    /// The connection that all wake-ups go out through.
    pusher: Mutex<Option<MultiplexedConnection>>,
    /// Connections that nobody waits on just now: whoever waits needs one to himself.
    idle: Mutex<Vec<MultiplexedConnection>>,
    health: Health,
}

impl RedisQueue {
    fn new(url: &SecretUrl, name: &str) -> Result<Self> {
        let client = Client::open(url.whole().expose_secret()).map_err(|e| {
            Error::caused(
                ErrorKind::Configuration,
                format!("queue.redis_url: {url} cannot be used"),
                e,
            )
        })?;
        Ok(Self {
            url: url.clone(),
            name: name.to_owned(),
            client,
            pusher: Mutex::default(),
            idle: Mutex::default(),
            health: Health::default(),
        })
    }

    /// The list of a server. Other programs push there too.
    fn list(&self, server: &str) -> String {
        match server {
            DEFAULT_SERVER => self.name.clone(),
            other => format!("{}:{other}", self.name),
        }
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        // No limit on answers: to wait for one is what half of the connections are for. Each use has a limit of its own.
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_LIMIT))
            .set_response_timeout(None);
        self.client
            .get_multiplexed_async_connection_with_config(&settings)
            .await
    }

    async fn wake(&self, server: &str, job: u64) {
        let pushed = timeout(WAKE_LIMIT, self.push(&self.list(server), job)).await;
        match pushed {
            Ok(Ok(())) => self.answered(&self.health.wake_refused),
            Ok(Err(error)) => self.failed(&self.health.wake_refused, &error),
            Err(_) => {
                // It may never answer again.
                *lock(&self.pusher) = None;
                self.failed(&self.health.wake_refused, &silence());
            }
        }
    }

    async fn try_out(&self, server: &str) -> Result<()> {
        let list = self.list(server);
        match timeout(CONNECT_LIMIT * 2, self.try_list(&list)).await {
            Ok(Ok(found)) if found == "none" || found == "list" => Ok(()),
            Ok(Ok(found)) => Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "what Redis at {} has under the name {list} is no list but a {found}",
                    self.url
                ),
            )),
            Ok(Err(error)) if error.is_io_error() => Err(self.away(error)),
            Ok(Err(error)) if error.to_string().contains("timeout is not") => Err(Error::caused(
                ErrorKind::Configuration,
                format!("Redis at {} is older than 6.0", self.url),
                error,
            )),
            Ok(Err(error)) => Err(Error::caused(
                ErrorKind::Refused,
                format!("Redis at {} refuses wake-ups", self.url),
                error,
            )),
            Err(_) => Err(self.away(silence())),
        }
    }

    fn away(&self, error: RedisError) -> Error {
        let message = format!("Redis at {} cannot be reached", self.url);
        Error::caused(ErrorKind::Unreachable, message, error)
    }

    /// The type of what is under the name of the list, once everything that is done to it worked on another one.
    async fn try_list(&self, list: &str) -> RedisResult<String> {
        let trial = format!("{list}:trial-{:016x}", rand::random::<u64>());
        let mut connection = self.connect().await?;
        let pushed: RedisResult<()> = redis::pipe()
            .atomic()
            .cmd("RPUSH")
            .arg(&trial)
            .arg(0)
            .ignore()
            .cmd("LTRIM")
            .arg(&trial)
            .arg(-KEPT)
            .arg(-1)
            .ignore()
            // Should nobody take it off again.
            .cmd("EXPIRE")
            .arg(&trial)
            .arg(60)
            .ignore()
            .query_async(&mut connection)
            .await;
        pushed?;
        let popped: RedisResult<redis::Value> = redis::cmd("BLPOP")
            .arg(&trial)
            .arg("0.001")
            .query_async(&mut connection)
            .await;
        if popped.is_err() {
            // Best effort: it goes by itself.
            let _: RedisResult<()> = redis::cmd("DEL")
                .arg(&trial)
                .query_async(&mut connection)
                .await;
        }
        popped?;
        redis::cmd("TYPE")
            .arg(list)
            .query_async(&mut connection)
            .await
    }

    async fn push(&self, list: &str, job: u64) -> RedisResult<()> {
        let mut command = redis::pipe();
        command
            .atomic()
            .cmd("RPUSH")
            .arg(list)
            .arg(job)
            .ignore()
            .cmd("LTRIM")
            .arg(list)
            .arg(-KEPT)
            .arg(-1)
            .ignore();
        let kept = lock(&self.pusher).clone();
        if let Some(mut kept) = kept {
            match command.query_async(&mut kept).await {
                // That Redis was started again meanwhile shows only now.
                Err(error) if error.is_io_error() => {}
                answer => return answer,
            }
        }
        let mut fresh = self.connect().await?;
        *lock(&self.pusher) = Some(fresh.clone());
        command.query_async(&mut fresh).await
    }

    async fn wait(&self, server: &str, at_most: Duration) -> bool {
        let list = self.list(server);
        let deadline = Instant::now() + at_most;
        loop {
            let left = until(deadline);
            match timeout_at(deadline, self.pop(&list, deadline)).await {
                Ok(Ok(is_woken)) => {
                    self.answered(&self.health.wait_refused);
                    return is_woken;
                }
                Ok(Err(error)) => self.failed(&self.health.wait_refused, &error),
                Err(_) => {
                    // A short silence says nothing.
                    if answer_limit(left) == ANSWER_LIMIT {
                        self.failed(&self.health.wait_refused, &silence());
                    }
                    return false;
                }
            }
            let again = Instant::now() + PAUSE;
            sleep_until(again.min(deadline)).await;
            if again >= deadline {
                return false;
            }
        }
    }

    /// Take one entry off the list, whatever it is; false for the answer that there was none in time.
    async fn pop(&self, list: &str, deadline: Instant) -> RedisResult<bool> {
        let kept = lock(&self.idle).pop();
        if let Some(kept) = kept {
            match self.pop_by(kept, list, deadline).await {
                // That Redis was started again meanwhile shows only now, and the others are no better.
                Err(error) if error.is_io_error() => lock(&self.idle).clear(),
                answer => return answer,
            }
        }
        let fresh = self.connect().await?;
        self.pop_by(fresh, list, deadline).await
    }

    async fn pop_by(
        &self,
        mut connection: MultiplexedConnection,
        list: &str,
        deadline: Instant,
    ) -> RedisResult<bool> {
        let left = until(deadline);
        let seconds = left.saturating_sub(answer_limit(left)).as_secs_f64();
        // Nothing at all would be for ever.
        let seconds = format!("{:.3}", seconds.max(0.001));
        // Dropped on the way it is closed, so that Redis does not go on for nobody.
        let popped: redis::Value = redis::cmd("BLPOP")
            .arg(list)
            .arg(seconds)
            .query_async(&mut connection)
            .await?;
        lock(&self.idle).push(connection);
        Ok(popped != redis::Value::Nil)
    }

    fn answered(&self, refused: &AtomicBool) {
        let was_away = self.health.away.swap(false, Ordering::Relaxed);
        let was_refused = refused.swap(false, Ordering::Relaxed);
        if was_away || was_refused {
            tracing::info!(redis = %self.url, "Redis wakes workers again");
        }
    }

    /// Say it once: Redis being away is the same outage for who wakes and who waits; each can also be refused alone.
    fn failed(&self, refused: &AtomicBool, error: &RedisError) {
        let away = error.is_io_error() || error.kind() == redis::ErrorKind::Parse;
        if away {
            if !self.health.away.swap(true, Ordering::Relaxed) {
                tracing::warn!(redis = %self.url, %error, "Redis is away: until it is back, workers find jobs only by looking from time to time");
            }
            return;
        }
        self.health.away.store(false, Ordering::Relaxed);
        if !refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(redis = %self.url, list = self.name, %error, "Redis refuses wake-ups: until it takes them, workers find jobs only by looking from time to time");
        }
    }
}

impl fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQueue")
            .field("url", &self.url)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What the log was told last.
#[derive(Default)]
struct Health {
    away: AtomicBool,
    wake_refused: AtomicBool,
    wait_refused: AtomicBool,
}

fn silence() -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, "it does not answer").into()
}

fn until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn answer_limit(left: Duration) -> Duration {
    ANSWER_LIMIT.min(left / 4)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::AtomicU32;
    use std::time::Instant;

    use tokio::task::{JoinHandle, JoinSet};
    use xtask::redis::Redis;

    use super::*;
    use crate::config::{Config, Environment, Origin};

    /// Far more than anything that happens at once takes, on a busy machine too.
    const AT_ONCE: Duration = Duration::from_secs(10);
    /// A worker who waits that long was forgotten.
    const LONG: Duration = Duration::from_secs(60);

    fn config(lines: &str) -> Result<QueueConfig> {
        let text = format!(
            "[database]\nurl = 'sqlite:///b.db'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n[queue]\n{lines}\n"
        );
        let origin = Origin::File("/etc/backup.toml".into());
        Config::read(origin, &text, &Environment::default()).map(|config| config.queue)
    }

    fn queue_at(url: &str) -> Queue {
        Queue::new(&config(&format!("redis_url = '{url}'")).unwrap()).unwrap()
    }

    fn spawn_wait(queue: &Queue, server: &'static str) -> JoinHandle<bool> {
        let queue = queue.clone();
        tokio::spawn(async move { queue.wait(server, LONG).await })
    }

    async fn comes_at_once(what: impl Future) {
        let started = Instant::now();
        what.await;
        let took = started.elapsed();
        assert!(took < AT_ONCE, "{took:?}");
    }

    async fn until_waiting(redis: &Redis, clients: u32) {
        let line = format!("blocked_clients:{clients}\r");
        let deadline = Instant::now() + AT_ONCE;
        while !redis.command(&["INFO", "clients"]).unwrap().contains(&line) {
            assert!(Instant::now() < deadline, "never {clients} who wait");
            tokio::task::yield_now().await;
        }
    }

    fn length(redis: &Redis, list: &str) -> u32 {
        redis.command(&["LLEN", list]).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn an_embedded_wake_up_reaches_who_waits_and_is_kept_for_who_comes_later() {
        let queue = Queue::new(&config("").unwrap()).unwrap();
        let waiting = spawn_wait(&queue, "default");
        tokio::task::yield_now().await;
        queue.clone().wake("default", 1).await;
        comes_at_once(waiting).await;

        queue.wake("default", 2).await;
        assert!(queue.wait("default", LONG).await);

        let started = Instant::now();
        assert!(!queue.wait("default", Duration::from_millis(50)).await);
        assert!(started.elapsed() >= Duration::from_millis(50));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_wake_up_reaches_who_waits_on_another_machine_and_is_kept_for_who_comes_later() {
        let redis = Redis::start().unwrap();
        let (here, there) = (queue_at(&redis.url()), queue_at(&redis.url()));
        for _ in 0..3 {
            let waiting = spawn_wait(&there, "default");
            until_waiting(&redis, 1).await;
            here.wake("default", 7).await;
            comes_at_once(waiting).await;
        }
        here.wake("default", 8).await;
        assert_eq!(
            redis.command(&["LRANGE", "backups", "0", "-1"]).unwrap(),
            "8"
        );
        assert!(there.wait("default", LONG).await);
        assert_eq!(length(&redis, "backups"), 0);
        assert!(!there.wait("default", Duration::from_millis(50)).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn servers_and_names_of_queues_do_not_mix() {
        let redis = Redis::start().unwrap();
        let queue = queue_at(&redis.url());
        let waiting = [("default", "backups"), ("web2", "backups:web2")]
            .map(|(server, list)| (spawn_wait(&queue, server), server, list));
        until_waiting(&redis, 2).await;
        queue.wake("web3", 1).await;
        assert_eq!(length(&redis, "backups:web3"), 1);
        until_waiting(&redis, 2).await;
        for (waiting, server, list) in waiting {
            assert!(!waiting.is_finished(), "{server}");
            queue.wake(server, 2).await;
            comes_at_once(waiting).await;
            assert_eq!(length(&redis, list), 0);
        }
        let lines = format!("redis_url = '{}'\nname = 'other'", redis.url());
        let other = Queue::new(&config(&lines).unwrap()).unwrap();
        other.wake("default", 3).await;
        assert_eq!(length(&redis, "other"), 1);
        assert_eq!(length(&redis, "backups"), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_of_many_who_wait_is_woken() {
        let redis = Redis::start().unwrap();
        let queue = queue_at(&redis.url());
        for _ in 0..2 {
            let waiting: Vec<_> = (0..20).map(|_| spawn_wait(&queue, "default")).collect();
            until_waiting(&redis, 20).await;
            let mut wakes = JoinSet::new();
            for job in 0..20 {
                let queue = queue.clone();
                wakes.spawn(async move { queue.wake("default", job).await });
            }
            comes_at_once(wakes.join_all()).await;
            for waiting in waiting {
                comes_at_once(waiting).await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_gives_up_waiting_takes_no_wake_up_along() {
        let redis = Redis::start().unwrap();
        let queue = queue_at(&redis.url());
        let waiting = spawn_wait(&queue, "default");
        until_waiting(&redis, 1).await;
        waiting.abort();
        until_waiting(&redis, 0).await;
        queue.wake("default", 1).await;
        assert_eq!(length(&redis, "backups"), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_redis_that_dies_lets_who_waits_wait_and_is_used_again_when_it_is_back() {
        let mut redis = Redis::start().unwrap();
        let queue = queue_at(&redis.url());
        queue.wake("default", 1).await;
        queue.wait("default", LONG).await;

        let at_most = Duration::from_secs(2);
        let started = Instant::now();
        let waiting = {
            let queue = queue.clone();
            tokio::spawn(async move { queue.wait("default", at_most).await })
        };
        until_waiting(&redis, 1).await;
        redis.kill();
        comes_at_once(queue.wake("default", 2)).await;
        waiting.await.unwrap();
        let took = started.elapsed();
        assert!(took >= at_most && took < at_most + AT_ONCE, "{took:?}");

        // Who started to wait in the outage is reached when it is over.
        let waiting = spawn_wait(&queue, "default");
        queue.wake("default", 3).await;
        redis.restart().unwrap();
        until_waiting(&redis, 1).await;
        queue.wake("default", 4).await;
        comes_at_once(waiting).await;

        // And so is who had a connection before it.
        redis.kill();
        redis.restart().unwrap();
        queue.wake("default", 5).await;
        assert_eq!(length(&redis, "backups"), 1);
        comes_at_once(queue.wait("default", LONG)).await;
        assert_eq!(length(&redis, "backups"), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_redis_that_takes_connections_but_says_nothing_holds_nobody_up() {
        let redis = Redis::start().unwrap();
        let connected = queue_at(&redis.url());
        connected.wake("default", 1).await;
        connected.wait("default", LONG).await;
        let unconnected = queue_at(&redis.url());
        redis.pause().unwrap();
        for queue in [&connected, &connected, &unconnected] {
            let started = Instant::now();
            queue.wake("default", 2).await;
            let took = started.elapsed();
            // Half a second, and what a busy machine adds.
            assert!(took < Duration::from_secs(10), "{took:?}");
        }
        for queue in [&connected, &connected, &unconnected] {
            let at_most = Duration::from_millis(700);
            let started = Instant::now();
            queue.wait("default", at_most).await;
            let took = started.elapsed();
            assert!(took >= at_most && took < at_most + AT_ONCE, "{took:?}");
        }
        redis.resume().unwrap();
        redis.command(&["FLUSHALL"]).unwrap();
        for queue in [connected, unconnected] {
            let waiting = spawn_wait(&queue, "default");
            until_waiting(&redis, 1).await;
            queue.wake("default", 3).await;
            comes_at_once(waiting).await;
        }
    }

    #[tokio::test]
    async fn a_redis_that_hangs_up_on_everybody_is_not_called_all_the_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        // It ends with the process.
        std::thread::spawn(move || {
            for call in listener.incoming() {
                drop(call);
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let at_most = Duration::from_millis(1500);
        let started = Instant::now();
        queue_at(&format!("redis://127.0.0.1:{port}"))
            .wait("default", at_most)
            .await;
        assert!(started.elapsed() >= at_most);
        let calls = calls.load(Ordering::SeqCst);
        assert!((1..=3).contains(&calls), "{calls} calls");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_others_do_to_the_list_harms_nobody() {
        let redis = Redis::start().unwrap();
        let queue = queue_at(&redis.url());
        queue.wake("default", 1).await;
        redis.command(&["FLUSHALL"]).unwrap();
        let at_most = Duration::from_secs(1);
        let started = Instant::now();
        queue.wait("default", at_most).await;
        let took = started.elapsed();
        assert!(
            took >= at_most / 2 && took < at_most + AT_ONCE,
            "flushed: {took:?}"
        );

        for garbage in [
            "",
            "one",
            "-1",
            "\u{1}\n{\"job\": 1}",
            "99999999999999999999",
        ] {
            redis.command(&["RPUSH", "backups", garbage]).unwrap();
            comes_at_once(queue.wait("default", LONG)).await;
        }

        redis.command(&["SET", "backups", "not a list"]).unwrap();
        queue.wake("default", 2).await;
        let started = Instant::now();
        queue.wait("default", at_most).await;
        let took = started.elapsed();
        assert!(took >= at_most, "not a list: {took:?}");
        redis.command(&["DEL", "backups"]).unwrap();
        queue.wake("default", 3).await;
        comes_at_once(queue.wait("default", LONG)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_list_that_nobody_empties_stays_short_and_keeps_the_newest() {
        let redis = Redis::start().unwrap();
        let fill = "for i = 1, 5000 do redis.call('RPUSH', KEYS[1], i) end";
        redis.command(&["EVAL", fill, "1", "backups"]).unwrap();
        let queue = queue_at(&redis.url());
        for job in [6_000, u64::MAX] {
            queue.wake("default", job).await;
            assert_eq!(length(&redis, "backups"), 1_000);
            let newest = redis.command(&["LINDEX", "backups", "-1"]).unwrap();
            assert_eq!(newest, job.to_string());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_socket_and_another_database_of_redis_will_do() {
        let redis = Redis::start().unwrap();
        let (socket, password) = (redis.socket(), redis.password());
        let url = format!("unix://{}?db=3&pass={password}", socket.display());
        let queue = queue_at(&url);
        queue.wake("default", 1).await;
        let kept = redis.command(&["-n", "3", "LLEN", "backups"]).unwrap();
        assert_eq!(kept, "1");
        comes_at_once(queue_at(&format!("{}/3", redis.url())).wait("default", LONG)).await;
        assert!(!format!("{queue:?}").contains(password));
    }
}
