//! A platform with customers who can log in, and the server in front of it.

use rustix::process::Signal;
use xtask::mariadb::MariaDb;
use xtask::product::{Product, Running};

use crate::client::Client;

pub const PASSWORD: &str = "correct horse";

/// Of [`PASSWORD`], as the platform (werkzeug 3.1.8) stores it; cheaper than usual, so that many can log in.
pub const PASSWORD_HASH: &str = "pbkdf2:sha256:50000$f0Bozf6XnT6H8hVk$7262d41699cffd078c01227c401b9a0a9519f34b3b1972e24ba57f76febc66f3";

pub struct World {
    pub product: Product,
}

pub struct Server {
    running: Running,
    pub address: String,
}

impl World {
    /// Both repositories, the tables, and these customers.
    pub fn new(customers: impl IntoIterator<Item = u32>) -> Self {
        let mut product = Product::start(env!("CARGO_BIN_EXE_shophosting-backup")).unwrap();
        product.keep_secret("the password of a customer", PASSWORD);
        for id in customers {
            product.add_customer(id).unwrap();
        }
        let world = Self { product };
        world.sql(&format!(
            "UPDATE customers SET password_hash = '{PASSWORD_HASH}'"
        ));
        world.product.run("migrate").done();
        world.product.init().unwrap();
        world
    }

    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.mariadb()
            .sql(&format!("USE shophosting_db; {sql}"))
            .unwrap()
    }

    pub fn mariadb(&self) -> &MariaDb {
        self.product.bed.mariadb()
    }

    /// The server, with other settings than usual: `("SERVER__PUBLIC_URL", "https://…")`.
    #[track_caller]
    pub fn serve_with(&self, line: &str, settings: &[(&str, &str)]) -> Server {
        let mut command = self.product.command(line);
        command
            .env("RUST_LOG", "debug,sqlx=warn,hyper=info")
            .env("BACKUP__SERVER__LISTEN", "127.0.0.1:0");
        for (key, value) in settings {
            command.env(format!("BACKUP__{key}"), value);
        }
        Server::start(self.product.spawn(command))
    }

    #[track_caller]
    pub fn serve(&self) -> Server {
        self.serve_with("serve", &[])
    }

    /// How many queries are asked while somebody does something.
    #[track_caller]
    pub fn queries_of(&self, act: impl FnOnce()) -> u64 {
        let selects = || {
            let counter = self.sql(
                "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'COM_SELECT'",
            );
            counter.trim().parse::<u64>().unwrap()
        };
        let counted = selects();
        // Looking at the counter counts, too.
        let of_looking = selects() - counted;
        let counted = selects();
        act();
        selects() - counted - of_looking
    }

    /// Stop a server as an operator does; what it logged.
    #[track_caller]
    pub fn stop(&self, server: Server) -> String {
        server.running.signal(Signal::TERM).unwrap();
        let outcome = self.product.finish(server.running);
        outcome.done();
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        outcome.stderr
    }

    /// Make a backup of a customer's files; its id.
    #[track_caller]
    pub fn back_up(&self, customer: u32) -> String {
        let line = format!("--json backup {customer} --type files");
        let document = self.product.run(&line).document();
        document["snapshot_id"].as_str().unwrap().to_owned()
    }
}

impl Server {
    #[track_caller]
    pub fn start(mut running: Running) -> Self {
        let mut address = None;
        xtask::product::wait_until("the server listens", || {
            address = address_in(&running.log());
            assert!(
                address.is_some() || running.is_running(),
                "{}",
                running.log()
            );
            address.is_some()
        });
        Self {
            running,
            address: address.unwrap(),
        }
    }

    pub fn id(&self) -> u32 {
        self.running.id()
    }

    pub fn log(&self) -> String {
        self.running.log()
    }

    /// A stranger.
    pub fn client(&self) -> Client {
        Client::new(&self.address)
    }

    /// A customer who has logged in.
    #[track_caller]
    pub fn customer(&self, id: u32) -> Client {
        self.client().with("Cookie", &self.log_in(id))
    }

    /// The cookie of a session that a customer has begun.
    #[track_caller]
    pub fn log_in(&self, id: u32) -> String {
        let answer = self.client().post("/login", &credentials(id, PASSWORD));
        answer.is(200).cookie()
    }
}

/// Where a server says that it listens. A line that is not whole yet holds no address.
pub fn address_in(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("listening on http://")?;
    let (line, _) = rest.split_once('\n')?;
    let is_of_address = |c: char| c.is_ascii_digit() || c == '.' || c == ':';
    line.split(|c| !is_of_address(c)).next().map(str::to_owned)
}

pub fn email(customer: u32) -> String {
    format!("owner@shop-{customer}.example")
}

/// The form of the login.
pub fn credentials(customer: u32, password: &str) -> String {
    format!(
        "email={}&password={}",
        email(customer),
        password.replace(' ', "+")
    )
}
