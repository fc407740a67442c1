//! How often somebody may try: so many at once, then one by one as time goes by. What succeeds is given back.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Keys that are remembered at once: a flood of new ones is neither to eat the memory nor to wash away those that tried often.
const MOST_KEYS: usize = 100_000;

/// Tries by key: an address, an account.
#[derive(Debug)]
pub struct Tries<K> {
    /// When each key will be as if it had never tried.
    fresh_at: Mutex<HashMap<K, Instant>>,
    pause: Duration,
    at_once: u32,
}

impl<K: Hash + Eq> Tries<K> {
    /// So many at once, and then one each time that the pause is over.
    pub fn new((at_once, pause): (u32, Duration)) -> Self {
        Self {
            fresh_at: Mutex::default(),
            pause,
            at_once,
        }
    }

    /// Take a try; Err: how long it takes until there is one.
    pub fn take(&self, key: K) -> Result<(), Duration> {
        let now = Instant::now();
        let mut keys = self.keys();
        if keys.len() >= MOST_KEYS {
            forget_half(&mut keys);
        }
        let fresh_at = keys.get(&key).copied().unwrap_or(now).max(now) + self.pause;
        let wait = (fresh_at - now).saturating_sub(self.pause * self.at_once);
        if !wait.is_zero() {
            return Err(wait);
        }
        keys.insert(key, fresh_at);
        Ok(())
    }

    /// Give a try back.
    pub fn give_back(&self, key: &K) {
        if let Some(fresh_at) = self.keys().get_mut(key) {
            *fresh_at -= self.pause;
        }
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<K, Instant>> {
        self.fresh_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those of which there is the least to know: they tried the least, or long ago.
fn forget_half<K: Hash + Eq>(keys: &mut HashMap<K, Instant>) {
    let mut times: Vec<Instant> = keys.values().copied().collect();
    let half = times.len() / 2;
    let (_, &mut middle, _) = times.select_nth_unstable(half);
    keys.retain(|_, fresh_at| *fresh_at > middle);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn one_key_is_stopped_and_the_others_are_not() {
        let tries = Tries::new((3, LONG));
        for _ in 0..3 {
            tries.take("a").unwrap();
        }
        let wait = tries.take("a").unwrap_err();
        assert!(wait <= LONG && wait > LONG / 2, "{wait:?}");
        tries.take("b").unwrap();
        tries.give_back(&"a");
        tries.take("a").unwrap();
        assert!(tries.take("a").is_err());
    }

    #[test]
    fn a_refused_try_makes_the_wait_no_longer() {
        let tries = Tries::new((1, LONG));
        tries.take(()).unwrap();
        for _ in 0..100 {
            assert!(tries.take(()).unwrap_err() <= LONG);
        }
    }

    #[test]
    fn tries_come_back_one_by_one() {
        let tries = Tries::new((2, Duration::from_nanos(1)));
        for _ in 0..1000 {
            while tries.take(()).is_err() {}
        }
    }

    #[test]
    fn a_flood_of_keys_is_forgotten_and_who_tried_often_is_not() {
        let tries = Tries::new((3, LONG));
        for _ in 0..3 {
            tries.take(0).unwrap();
        }
        for key in 1..=3 * MOST_KEYS {
            tries.take(key).unwrap();
            assert!(tries.keys().len() <= MOST_KEYS);
        }
        assert!(tries.take(0).is_err());
    }
}
