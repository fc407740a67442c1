//! What time it is, and what a clock on the customer's wall says.
//!
//! The server reckons with jiff, the browser with its own calendar: both know the same time zones, and neither sends the other's to the customer.
//! Times are milliseconds since 1970, UTC.

use leptos::prelude::*;

use crate::model::Viewer;
use crate::words::WallTime;

/// The clock of a page.
#[derive(Clone, Copy)]
pub struct Clock {
    /// Now. The server's clock counts; the browser only adds what went by since.
    pub now: RwSignal<i64>,
    /// The time zone that times are shown in (IANA): first as the server knew it, then the browser's own.
    pub zone: RwSignal<String>,
}

impl Clock {
    /// The clock of a page that was made for this viewer. In the browser it runs.
    pub fn start(viewer: &Viewer) -> Self {
        let clock = Self {
            now: RwSignal::new(viewer.now),
            zone: RwSignal::new(viewer.zone.clone()),
        };
        #[cfg(feature = "hydrate")]
        browser::run(clock);
        clock
    }

    /// A time in the customer's zone, in words.
    pub fn in_words(self, time: i64) -> String {
        self.zone.with(|zone| wall_time(time, zone)).in_words()
    }
}

#[cfg(feature = "ssr")]
mod server {
    use super::WallTime;

    /// UTC where the zone is not known.
    pub fn wall_time(millis: i64, zone: &str) -> WallTime {
        let zone = jiff::tz::TimeZone::get(zone).unwrap_or(jiff::tz::TimeZone::UTC);
        let time = jiff::Timestamp::from_millisecond(millis)
            .unwrap_or_default()
            .to_zoned(zone);
        WallTime {
            year: time.year().into(),
            month: time.month().unsigned_abs(),
            day: time.day().unsigned_abs(),
            hour: time.hour().unsigned_abs(),
            minute: time.minute().unsigned_abs(),
        }
    }

    pub fn parse(iso: &str) -> Option<i64> {
        let time: jiff::Timestamp = iso.parse().ok()?;
        Some(time.as_millisecond())
    }

    pub fn iso(millis: i64) -> String {
        jiff::Timestamp::from_millisecond(millis)
            .unwrap_or_default()
            .to_string()
    }
}

#[cfg(feature = "hydrate")]
mod browser {
    use std::time::Duration;

    use js_sys::{Array, Date, Function, Intl, Object, Reflect};
    use leptos::prelude::*;
    use wasm_bindgen::{JsCast, JsValue};

    use super::{Clock, WallTime};

    const TICK: Duration = Duration::from_secs(1);

    pub fn run(clock: Clock) {
        let behind = clock.now.get_untracked() as f64 - Date::now();
        let ticking =
            set_interval_with_handle(move || clock.now.set((Date::now() + behind) as i64), TICK);
        if let Ok(ticking) = ticking {
            on_cleanup(move || ticking.clear());
        }
        // After hydration: until then everything must be as the server wrote it.
        Effect::new(move |_| {
            if let Some(own) = own_zone() {
                remember(&own);
                if clock.zone.with_untracked(|zone| *zone != own) {
                    clock.zone.set(own);
                }
            }
        });
    }

    fn own_zone() -> Option<String> {
        let format = format_of(&Object::new())?;
        Reflect::get(&format.resolved_options(), &"timeZone".into())
            .ok()?
            .as_string()
    }

    /// Tell the server for the next page.
    fn remember(zone: &str) {
        const A_YEAR: &str = "31536000";
        let cookie = ["tz=", zone, "; SameSite=Lax; Path=/; Max-Age=", A_YEAR].concat();
        let document: web_sys::HtmlDocument = document().unchecked_into();
        // A browser that keeps no cookies shows the server's zone first, each time.
        let _ = document.set_cookie(&cookie);
    }

    pub fn wall_time(millis: i64, zone: &str) -> WallTime {
        let options = Object::new();
        for (key, value) in [
            ("timeZone", zone),
            ("hourCycle", "h23"),
            ("calendar", "gregory"),
            ("numberingSystem", "latn"),
            ("year", "numeric"),
            ("month", "numeric"),
            ("day", "numeric"),
            ("hour", "numeric"),
            ("minute", "numeric"),
        ] {
            set(&options, key, value);
        }
        let format = format_of(&options).or_else(|| {
            // A zone that this browser does not know.
            set(&options, "timeZone", "UTC");
            format_of(&options)
        });
        let mut time = WallTime {
            year: 1970,
            month: 1,
            day: 1,
            hour: 0,
            minute: 0,
        };
        let Some(format) = format else { return time };
        let date = Date::new(&JsValue::from_f64(millis as f64));
        for part in format.format_to_parts(&date).iter() {
            let text = |key: &str| Reflect::get(&part, &key.into()).ok()?.as_string();
            let number = || text("value")?.parse::<u16>().ok();
            let (Some(kind), Some(number)) = (text("type"), number()) else {
                continue;
            };
            let small = u8::try_from(number).unwrap_or_default();
            match kind.as_str() {
                "year" => time.year = number.into(),
                "month" => time.month = small,
                "day" => time.day = small,
                "hour" => time.hour = small,
                "minute" => time.minute = small,
                _ => {}
            }
        }
        time
    }

    /// None where the options make no sense to this browser: the constructor throws then.
    fn format_of(options: &Object) -> Option<Intl::DateTimeFormat> {
        let intl = Reflect::get(&js_sys::global(), &"Intl".into()).ok()?;
        let constructor = Reflect::get(&intl, &"DateTimeFormat".into()).ok()?;
        let arguments = Array::of2(&"en-GB".into(), options);
        let format = Reflect::construct(constructor.dyn_ref::<Function>()?, &arguments).ok()?;
        Some(format.unchecked_into())
    }

    fn set(options: &Object, key: &str, value: &str) {
        // Fails on frozen objects alone.
        let _ = Reflect::set(options, &key.into(), &value.into());
    }

    pub fn parse(iso: &str) -> Option<i64> {
        let millis = Date::parse(iso);
        millis.is_finite().then_some(millis as i64)
    }

    pub fn iso(millis: i64) -> String {
        let date = Date::new(&JsValue::from_f64(millis as f64));
        if date.get_time().is_finite() {
            date.to_iso_string().into()
        } else {
            String::new()
        }
    }
}

#[cfg(feature = "hydrate")]
use browser as here;
#[cfg(feature = "ssr")]
use server as here;

/// What a clock in this zone says.
pub fn wall_time(millis: i64, zone: &str) -> WallTime {
    here::wall_time(millis, zone)
}

/// An ISO 8601 time.
pub fn parse(iso: &str) -> Option<i64> {
    here::parse(iso)
}

/// As `<time datetime>` has it.
pub fn iso(millis: i64) -> String {
    here::iso(millis)
}

#[cfg(all(test, feature = "ssr"))]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_the_customers_zone_and_in_utc_where_it_is_not_known() {
        let time = parse("2026-11-18T23:12:05.678Z").unwrap();
        for (zone, words) in [
            ("Europe/Berlin", "Thu 19 Nov 2026, 00:12"),
            ("America/New_York", "Wed 18 Nov 2026, 18:12"),
            ("UTC", "Wed 18 Nov 2026, 23:12"),
            ("Nowhere/Atlantis", "Wed 18 Nov 2026, 23:12"),
        ] {
            assert_eq!(wall_time(time, zone).in_words(), words, "{zone}");
        }
    }
}
