//! The settings that cargo-leptos reads too: `[[workspace.metadata.leptos]]` in `Cargo.toml`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    pub lib_package: String,
    pub lib_features: Vec<String>,
    pub lib_profile_release: String,
    pub output_name: String,
    pub site_root: PathBuf,
    pub site_pkg_dir: PathBuf,
    pub style_file: PathBuf,
    pub assets_dir: PathBuf,
}

#[derive(Deserialize)]
struct Manifest {
    workspace: Workspace,
}

#[derive(Deserialize)]
struct Workspace {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    leptos: Vec<Settings>,
}

impl Settings {
    pub fn read(manifest: &Path) -> Result<Self> {
        let text = fs::read_to_string(manifest)?;
        let manifest: Manifest =
            toml::from_str(&text).context("[[workspace.metadata.leptos]] in Cargo.toml")?;
        let mut projects = manifest.workspace.metadata.leptos.into_iter();
        projects
            .next()
            .context("Cargo.toml has no [[workspace.metadata.leptos]]")
    }
}
