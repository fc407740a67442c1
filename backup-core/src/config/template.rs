//! Text of the configuration with places for what differs from customer to customer: `customer_{id}`.

use std::fmt;

use serde::Deserialize;

use crate::customer::Customer;
use crate::error::{Error, ErrorKind, Result};

/// A place in a [`Template`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placeholder {
    /// `{id}`: the customer's number.
    Id,
    /// `{database}`: the name of his database schema.
    Database,
    /// `{web_port}`: the port that his site answers on.
    WebPort,
}

impl Placeholder {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "id" => Some(Self::Id),
            "database" => Some(Self::Database),
            "web_port" => Some(Self::WebPort),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Database => "database",
            Self::WebPort => "web_port",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    Place(Placeholder),
}

impl Part {
    pub(super) fn text(plain: &str) -> Self {
        Self::Text(plain.to_owned())
    }
}

/// Text with placeholders. A placeholder that does not exist, or a stray brace, is refused when the configuration
/// is read.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Template {
    parts: Vec<Part>,
}

impl Template {
    pub(super) fn of(parts: impl Into<Vec<Part>>) -> Self {
        Self {
            parts: parts.into(),
        }
    }

    /// Whether a placeholder occurs.
    pub fn has(&self, place: Placeholder) -> bool {
        self.parts.contains(&Part::Place(place))
    }

    /// The first placeholder that is not among those that make sense here.
    pub(super) fn stranger(&self, allowed: &[Placeholder]) -> Option<&'static str> {
        self.parts.iter().find_map(|part| match part {
            Part::Place(place) if !allowed.contains(place) => Some(place.name()),
            _ => None,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The text for one customer. [`ErrorKind::Configuration`] where the platform's table lacks what it needs.
    pub(super) fn render(&self, customer: &Customer) -> Result<String> {
        self.fill(|place| match place {
            Placeholder::Id => Ok(customer.id.to_string()),
            Placeholder::Database => Ok(customer.db_name.to_string()),
            Placeholder::WebPort => {
                customer
                    .web_port
                    .map(|port| port.to_string())
                    .ok_or_else(|| {
                        Error::new(
                            ErrorKind::Configuration,
                            format!(
                                "`{self}` needs the web_port of customer {}, which is not set",
                                customer.id
                            ),
                        )
                    })
            }
        })
    }

    /// What it becomes for some customer, to judge its form by.
    pub(super) fn sample(&self) -> String {
        let part = |part: &Part| match part {
            Part::Text(plain) => plain.clone(),
            Part::Place(_) => "1".to_owned(),
        };
        self.parts.iter().map(part).collect()
    }

    pub(super) fn fill(&self, value: impl Fn(Placeholder) -> Result<String>) -> Result<String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Place(place) => text.push_str(&value(*place)?),
            }
        }
        Ok(text)
    }
}

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        if text.contains('\0') {
            return Err("a NUL character is not allowed".into());
        }
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find(['{', '}']) {
            let (plain, from_brace) = rest.split_at(at);
            let name = from_brace
                .strip_prefix('{')
                .and_then(|inner| inner.split_once('}'))
                .ok_or_else(|| format!("`{text}` has a stray brace"))?;
            let place = Placeholder::from_name(name.0).ok_or_else(|| {
                format!("`{text}` has the unknown placeholder {{{}}}; there are {{id}}, {{database}} and {{web_port}}", name.0)
            })?;
            if !plain.is_empty() {
                parts.push(Part::Text(plain.to_owned()));
            }
            parts.push(Part::Place(place));
            rest = name.1;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self { parts })
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Text(plain) => f.write_str(plain)?,
                Part::Place(place) => write!(f, "{{{}}}", place.name())?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn template(text: &str) -> std::result::Result<Template, String> {
        Template::try_from(text.to_owned())
    }

    #[test]
    fn unknown_placeholders_and_stray_braces_are_refused() {
        for bad in [
            "{user}", "{", "}", "a}b", "{id", "{{id}}", "{}", "{ID}", "{ id }", "a\0",
        ] {
            assert!(template(bad).is_err(), "{bad:?}");
        }
        assert!(template("customer_{id}").unwrap().has(Placeholder::Id));
    }

    proptest! {
        #[test]
        fn any_text_is_read_back_as_written_or_refused(text in "[a-z/{}]{0,12}|(\\{id\\}|\\{database\\}|/|x){0,6}") {
            if let Ok(read) = template(&text) {
                prop_assert_eq!(read.to_string(), text);
            } else {
                let has_brace = text.contains(['{', '}']);
                prop_assert!(has_brace);
            }
        }
    }
}
