//! Customers looked up in a platform's MySQL table, which comes in more than one shape.

use backup_core::config::{Config, Environment, Origin};
use backup_core::customer::{CustomerId, CustomerStore, NewCustomer};
use backup_core::error::{ErrorKind, Result};
use backup_core::store::Store;
use secrecy::ExposeSecret;
use xtask::mariadb::MariaDb;

/// The platform's table as its Flask application makes it.
const TABLE: &str = "CREATE DATABASE shophosting_db;
USE shophosting_db;
CREATE TABLE customers (
    id INT PRIMARY KEY AUTO_INCREMENT,
    email VARCHAR(255) NOT NULL UNIQUE,
    password_hash VARCHAR(255) NOT NULL,
    company_name VARCHAR(255) NOT NULL,
    domain VARCHAR(255) NOT NULL,
    platform ENUM('woocommerce', 'magento') NOT NULL,
    status ENUM('pending', 'provisioning', 'active', 'suspended', 'failed') DEFAULT 'pending',
    web_port INT,
    server_id INT,
    db_name VARCHAR(64),
    db_user VARCHAR(64),
    db_password VARCHAR(255),
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
INSERT INTO customers (id, email, password_hash, company_name, domain, platform, status, web_port, server_id, db_name, db_user, db_password) VALUES
    (1, 'a@x', 'h', 'A', 'a.example', 'woocommerce', 'active', 8001, 3, 'customer_1', 'cust1', 'pa$$'),
    (12, 'b@x', 'h', 'B', 'b.example', 'magento', 'suspended', NULL, NULL, NULL, NULL, NULL),
    (13, 'c@x', 'h', 'C', 'c.example', 'magento', 'active', 0, NULL, '', '', ''),
    (14, 'd@x', 'h', 'D', 'd.example', 'magento', 'active', 1, NULL, 'shophosting_db', NULL, NULL),
    (15, 'e@x', 'h', 'E', 'e.example', 'magento', 'active', 1, NULL, '../../etc', NULL, NULL);
CREATE USER app@localhost IDENTIFIED BY 's3cret';
GRANT SELECT ON shophosting_db.* TO app@localhost;
CREATE USER blind@localhost IDENTIFIED BY 's3cret';
GRANT CREATE ON shophosting_db.* TO blind@localhost;
-- An older platform: few columns, in other types.
CREATE DATABASE older;
CREATE TABLE older.customers (id INT UNSIGNED PRIMARY KEY, status VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin, web_port SMALLINT UNSIGNED, db_name VARBINARY(64));
INSERT INTO older.customers VALUES (7, 'active', 65535, 'shop_7');
GRANT SELECT ON older.* TO app@localhost;
CREATE DATABASE empty;
GRANT SELECT ON empty.* TO app@localhost;";

fn config(server: &MariaDb, account: &str, schema: &str) -> Config {
    let port = server.port();
    let text = format!(
        "[database]\nurl = 'mysql://{account}@127.0.0.1:{port}/{schema}'\n\
         [repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n"
    );
    let environment: Environment = [("DB_PASSWORD", "s3cret")].into_iter().collect();
    Config::read(Origin::File("test".into()), &text, &environment).unwrap()
}

async fn open(config: &Config) -> Result<(Store, CustomerStore)> {
    let store = Store::connect(config).await?;
    let customers = CustomerStore::new(&store, config);
    Ok((store, customers))
}

fn number(id: u32) -> CustomerId {
    CustomerId::new(id).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_of_a_platform_are_read_and_its_tables_left_alone() {
    let mut server = MariaDb::start().unwrap();
    server.sql(TABLE).unwrap();
    let before = server
        .sql("CHECKSUM TABLE shophosting_db.customers; SHOW TABLES IN shophosting_db")
        .unwrap();

    let (connected, store) = open(&config(&server, "app", "shophosting_db"))
        .await
        .unwrap();
    let one = store.get(number(1)).await.unwrap();
    assert_eq!(one.db_name.as_str(), "customer_1");
    assert_eq!(one.status.as_deref(), Some("active"));
    assert_eq!((one.web_port, one.server.as_str()), (Some(8001), "default"));
    assert_eq!(one.db_user.as_deref(), Some("cust1"));
    assert_eq!(one.db_password.as_ref().unwrap().expose_secret(), "pa$$");
    for id in [12, 13] {
        let bare = store.get(number(id)).await.unwrap();
        assert_eq!(bare.db_name.as_str(), format!("customer_{id}"));
        assert!(bare.db_user.is_none() && bare.db_password.is_none() && bare.web_port.is_none());
    }
    for (id, reason) in [(14, "the platform's own database"), (15, "only letters")] {
        let error = store.get(number(id)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert_eq!(
        store.get(number(2)).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let listed: Vec<_> = store
        .list()
        .await
        .unwrap()
        .iter()
        .map(|line| line.id.get())
        .collect();
    assert_eq!(listed, [1, 12, 13, 14, 15]);
    // Where the platform has several servers, their names say whose customer he is.
    server
        .sql("CREATE TABLE shophosting_db.servers (id INT PRIMARY KEY, name VARCHAR(64)); INSERT INTO shophosting_db.servers VALUES (3, 'north')")
        .unwrap();
    let one = store.get(number(1)).await.unwrap();
    assert_eq!(one.server, "north");
    server.sql("DELETE FROM shophosting_db.servers").unwrap();
    let homeless = store.get(number(1)).await.unwrap_err();
    assert_eq!(homeless.kind(), ErrorKind::Configuration);
    server.sql("DROP TABLE shophosting_db.servers").unwrap();

    let refused = store.add(&NewCustomer::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    let after = server
        .sql("CHECKSUM TABLE shophosting_db.customers; SHOW TABLES IN shophosting_db")
        .unwrap();
    assert_eq!(before, after);

    let (_, older) = open(&config(&server, "app", "older")).await.unwrap();
    let seven = older.get(number(7)).await.unwrap();
    assert_eq!(seven.db_name.as_str(), "shop_7");
    assert_eq!(
        (
            seven.status.as_deref(),
            seven.web_port,
            seven.server.as_str()
        ),
        (Some("active"), Some(65_535), "default")
    );

    for (account, schema, kind, hint) in [
        (
            "app:wr0ng",
            "shophosting_db",
            ErrorKind::Refused,
            "DB_PASSWORD",
        ),
        (
            "nobody",
            "shophosting_db",
            ErrorKind::Refused,
            "DB_PASSWORD",
        ),
        ("app", "mysql", ErrorKind::Refused, "database.url"),
        ("root", "nowhere", ErrorKind::Refused, "database.url"),
        (
            "blind",
            "shophosting_db",
            ErrorKind::Refused,
            "grant it SELECT",
        ),
        (
            "app",
            "empty",
            ErrorKind::Configuration,
            "no table `customers`",
        ),
    ] {
        let failed = match open(&config(&server, account, schema)).await {
            Ok((_, store)) => store.get(number(1)).await.unwrap_err(),
            Err(e) => e,
        };
        assert_eq!(failed.kind(), kind, "{account} {schema}: {failed:?}");
        assert!(failed.to_string().contains(hint), "{failed}");
        for secret in ["s3cret", "wr0ng"] {
            assert!(!failed.chain().contains(secret), "{failed:?}");
        }
    }

    server.stop().unwrap();
    let gone = store.get(number(1)).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Unreachable, "{gone:?}");
    connected.close().await;
}
