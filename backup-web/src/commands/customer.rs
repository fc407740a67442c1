//! `customer add` and `customer list`.

use std::process::ExitCode;

use backup_core::config::{Config, PasswordSource};
use backup_core::customer::{CustomerStore, NewCustomer};
use backup_core::error::Result;
use backup_core::store::Store;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::args::AddArgs;
use crate::output::Output;

pub fn add(config: &Config, args: AddArgs, output: Output, runtime: &Runtime) -> Result<ExitCode> {
    let password = args
        .db_password_file
        .map_or(PasswordSource::None, PasswordSource::File);
    let new = NewCustomer {
        id: args.id,
        domain: args.domain,
        db_name: args.db_name,
        db_user: args.db_user,
        db_password: password.read()?,
        web_port: args.web_port,
    };
    let id = runtime.block_on(async {
        let store = Store::connect(config).await?;
        let added = CustomerStore::new(&store, config).add(&new).await;
        store.close().await;
        added
    })?;
    output.result(&json!({ "customer_id": id }), || format!("customer {id}"));
    Ok(ExitCode::SUCCESS)
}

pub fn list(config: &Config, output: Output, runtime: &Runtime) -> Result<ExitCode> {
    let customers = runtime.block_on(async {
        let store = Store::connect(config).await?;
        let listed = CustomerStore::new(&store, config).list().await;
        store.close().await;
        listed
    })?;
    output.result(&json!({ "customers": customers }), || {
        let mut text = String::new();
        for customer in &customers {
            let status = customer.status.as_deref().unwrap_or("-");
            let name = customer.name.as_deref().unwrap_or("");
            text.push_str(&format!(
                "{:>8}  {status:<12}  {}\n",
                customer.id,
                name.escape_debug()
            ));
        }
        text
    });
    Ok(ExitCode::SUCCESS)
}
