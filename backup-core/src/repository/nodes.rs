//! A directory of the restic format, JSON `{"nodes": […]}`, read node by node.
//!
//! A tenant's directory may have a million entries: never are all its nodes in memory at once.

use std::fmt;
use std::io::{BufReader, Read};

use rustic_core::repofile::Node;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, ErrorKind, Result};

/// Hands out one node after the other, until `visit` fails.
pub(super) fn parse(json: impl Read, mut visit: impl FnMut(Node) -> Result<()>) -> Result<()> {
    let mut failure = None;
    let mut note_failure = |node| {
        visit(node).map_err(|error| {
            failure = Some(error);
        })
    };
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(json));
    let parsed = Directory(&mut note_failure)
        .deserialize(&mut json)
        .and_then(|()| json.end());
    match (failure, parsed) {
        (Some(failure), _) => Err(failure),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) => Err(Error::caused(
            ErrorKind::Damaged,
            "a directory in the repository cannot be read",
            error,
        )),
    }
}

/// The object with its list.
struct Directory<'a, F>(&'a mut F);

impl<'de, F: FnMut(Node) -> Result<(), ()>> DeserializeSeed<'de> for Directory<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(Node) -> Result<(), ()>> Visitor<'de> for Directory<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a directory")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "nodes" {
                map.next_value_seed(Nodes(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The list; `null` is an empty one.
struct Nodes<'a, F>(&'a mut F);

impl<'de, F: FnMut(Node) -> Result<(), ()>> DeserializeSeed<'de> for Nodes<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(Node) -> Result<(), ()>> Visitor<'de> for Nodes<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of nodes")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut nodes: A) -> Result<(), A::Error> {
        while let Some(node) = nodes.next_element()? {
            (self.0)(node).map_err(|()| A::Error::custom("stopped"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(json: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        parse(json.as_bytes(), |node| {
            names.push(node.name);
            Ok(())
        })?;
        Ok(names)
    }

    #[test]
    fn a_directory_is_read_whole_or_not_at_all() {
        let node = |name: &str| format!(r#"{{"name":"{name}","type":"file","future":[{{}}]}}"#);
        let (a, b) = (node("a"), node("b"));
        let json = format!(r#"{{"future":{{"nodes":1}},"nodes":[{a},{b}],"later":null}}"#);
        assert_eq!(names(&json).unwrap(), ["a", "b"]);
        for empty in [r#"{"nodes":[]}"#, r#"{"nodes":null}"#, "{}"] {
            assert!(names(empty).unwrap().is_empty(), "{empty}");
        }
        let cut = &json[..json.len() - 2];
        for bad in [cut, "[]", r#"{"nodes":7}"#, &format!("{json}x"), ""] {
            assert_eq!(names(bad).unwrap_err().kind(), ErrorKind::Damaged, "{bad}");
        }
    }

    #[test]
    fn the_error_of_who_looks_is_the_one_that_is_returned() {
        let json = r#"{"nodes":[{"name":"a","type":"file"}]}"#;
        let refuse = |_| Err(Error::new(ErrorKind::Refused, "not this one"));
        let error = parse(json.as_bytes(), refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
}
