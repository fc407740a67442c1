//! The example that operators start from has every key, and says of each what holds without it.

use std::collections::BTreeSet;

use serde::de::value::Error as NotRead;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};

use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/backup.toml.example");

/// What follows an example of a value, where there is no default.
const NO_DEFAULT: &str = "no default";
/// What else follows it, where its section is nothing without it.
const NEEDED: &str = "no default, needed";
/// What else follows it, where the key goes with another of which the same is said.
const TOGETHER: &str = "no default, both or none";
/// What else follows it, where another key has to go for it.
const INSTEAD_OF: &str = "instead of ";
/// What else follows it, where another key has to have this value: all keys of which that is said go together.
const GOES_WITH: &str = ", with ";

/// Asks a type for the names of its keys, and gives it nothing.
struct Keys<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for Keys<'_> {
    type Error = NotRead;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> std::result::Result<V::Value, NotRead> {
        Err(NotRead::custom("not a section"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> std::result::Result<V::Value, NotRead> {
        self.0.extend(fields);
        Err(NotRead::custom("only asked"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn keys<T: Deserialize<'static>>() -> Vec<&'static str> {
    let mut found = Vec::new();
    let _ = T::deserialize(Keys(&mut found));
    assert!(!found.is_empty(), "not a section");
    found
}

/// All that the configuration knows: `server.listen`, …
fn all_keys() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for section in keys::<Config>() {
        let keys = match section {
            "server" => keys::<ServerConfig>(),
            "database" => keys::<DatabaseConfig>(),
            "queue" => keys::<QueueConfig>(),
            "worker" => keys::<WorkerConfig>(),
            "customers" => keys::<CustomersConfig>(),
            "customer_database" => keys::<CustomerDatabaseConfig>(),
            "site" => keys::<SiteConfig>(),
            "restore" => keys::<RestoreConfig>(),
            "retention" => keys::<RetentionConfig>(),
            "daily" => keys::<DailyConfig>(),
            "verify" => keys::<VerifyConfig>(),
            "repositories" => {
                for name in keys::<RepositoriesConfig>() {
                    let keys = keys::<RepositoryConfig>();
                    all.extend(keys.iter().map(|key| format!("{section}.{name}.{key}")));
                }
                continue;
            }
            "notify" => {
                for name in keys::<NotifyConfig>() {
                    let keys = match name {
                        "webhook" => keys::<WebhookConfig>(),
                        "email" => keys::<EmailConfig>(),
                        new => panic!("the section {section}.{new} is not known here"),
                    };
                    all.extend(keys.iter().map(|key| format!("{section}.{name}.{key}")));
                }
                continue;
            }
            new => panic!("the section {new} is not known here"),
        };
        all.extend(keys.iter().map(|key| format!("{section}.{key}")));
    }
    all
}

/// A line of the example that has a key.
struct Line {
    number: usize,
    section: &'static str,
    /// Where its section begins, if that does not hold as it stands.
    header: Option<usize>,
    key: &'static str,
    /// Whether it holds as it stands.
    is_set: bool,
    text: &'static str,
}

fn lines() -> Vec<Line> {
    let is_of_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let mut section = "";
    let mut header = None;
    let mut found = Vec::new();
    for (number, line) in EXAMPLE.lines().enumerate() {
        let text = line.strip_prefix('#').unwrap_or(line);
        if let Some((name, _)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            section = name;
            header = line.starts_with('#').then_some(number);
        }
        if let Some((key, _)) = text.split_once(" = ")
            && key.chars().all(is_of_key)
        {
            found.push(Line {
                number,
                section,
                header,
                key,
                is_set: !line.starts_with('#'),
                text,
            });
        }
    }
    found
}

fn read(text: &str) -> Config {
    let origin = Origin::File("/etc/shophosting/backup.toml".into());
    Config::read(origin, text, &Environment::default()).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn the_example_has_every_key_once_and_no_other() {
    let mut shown = BTreeSet::new();
    for line in lines() {
        let key = format!("{}.{}", line.section, line.key);
        assert!(shown.insert(key.clone()), "{key} is there twice");
    }
    let known = all_keys();
    let missing: Vec<_> = known.difference(&shown).collect();
    let unknown: Vec<_> = shown.difference(&known).collect();
    assert!(
        missing.is_empty(),
        "deploy/backup.toml.example lacks {missing:?}"
    );
    assert!(
        unknown.is_empty(),
        "deploy/backup.toml.example has {unknown:?}"
    );
}

#[test]
fn the_example_can_be_used_and_what_it_shows_as_a_default_is_the_default() {
    let whole: Vec<&str> = EXAMPLE.lines().collect();
    let mut defaults = 0;
    for line in lines().iter().filter(|line| !line.is_set) {
        let mut changed = whole.clone();
        if let Some(header) = line.header {
            changed[header] = &changed[header][1..];
            for one in lines() {
                if one.header == line.header && one.text.ends_with(NEEDED) {
                    changed[one.number] = one.text;
                }
            }
        }
        let as_it_is = format!("{:?}", read(&changed.join("\n")));
        changed[line.number] = line.text;
        if line.text.ends_with(TOGETHER) {
            for one in lines() {
                if one.section == line.section && one.text.ends_with(TOGETHER) {
                    changed[one.number] = one.text;
                }
            }
        }
        if let Some((_, other)) = line.text.split_once(INSTEAD_OF) {
            let is_other = |it: &&Line| it.section == line.section && it.key == other;
            let other = lines().iter().find(is_other).unwrap().number;
            changed[other] = "";
        }
        if let Some((_, other)) = line.text.split_once(GOES_WITH) {
            let (key, _) = other.split_once(" = ").unwrap();
            for one in &lines() {
                if one.section == line.section && one.key == key {
                    changed[one.number] = other;
                } else if one.text.ends_with(other) {
                    changed[one.number] = one.text;
                }
            }
        }
        let config = format!("{:?}", read(&changed.join("\n")));
        let place = format!("{}.{}", line.section, line.key);
        if line.text.ends_with(NEEDED) {
            assert_eq!(config, as_it_is);
        } else if line.text.contains(NO_DEFAULT) {
            assert_ne!(config, as_it_is, "{place} has a default");
        } else {
            assert_eq!(config, as_it_is, "{place} has another default");
            defaults += 1;
        }
    }
    assert!(defaults > 20, "the example is not understood");
}
