//! What happens often is counted: who did what with what, and how it ended, is one record a minute with a count.
//!
//! Pure: no clock, no store. What always holds: what was counted once is shown at the next asking, what goes on is shown
//! once a minute, and nothing counted is forgotten. The number of things counted at one time is bounded: when there are
//! too many, they are counted together, first without what, where from and why, then without who.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use super::{Event, Origin, Outcome};

/// How long what goes on is counted before it is shown again.
const TOGETHER_MS: u64 = 60_000;
/// Things that are counted each by itself.
const MAX_KINDS: usize = 2048;
/// Of whose deeds of one kind are counted together, once there are that many.
const MAX_CALLERS: usize = 512;
/// Who is named when there are too many to be named.
const OTHERS: &str = "(others)";

/// What is counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Deed {
    /// Who.
    pub who: String,
    /// What was done; of a denial, the permission that was asked for.
    pub action: Cow<'static, str>,
    /// With what.
    pub subject: String,
    /// What came of it.
    pub outcome: Outcome,
    /// What else a reader should know.
    pub detail: String,
}

/// How much of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How often.
    pub times: u64,
    /// With how many bytes in all.
    pub bytes: u64,
}

impl Amount {
    /// Something that was done once, without bytes.
    pub const ONCE: Self = Self { times: 1, bytes: 0 };

    /// Something that was done once, with so many bytes.
    #[must_use]
    pub const fn once(bytes: u64) -> Self {
        Self { times: 1, bytes }
    }
}

#[derive(Debug, Default)]
struct Tally {
    amount: Amount,
    /// Of the first.
    origin: Origin,
    /// When it was shown last; `None` if it never was.
    shown_ms: Option<u64>,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    kinds: HashMap<(Deed, Option<IpAddr>), Tally>,
}

impl Tallies {
    /// Counts some more.
    pub(super) fn add(&mut self, deed: Deed, origin: Origin, more: Amount) {
        let key = self.place_for(deed, origin);
        let tally = self.kinds.entry(key).or_default();
        if tally.amount.times == 0 {
            tally.origin = origin;
        }
        tally.amount.times = tally.amount.times.saturating_add(more.times);
        tally.amount.bytes = tally.amount.bytes.saturating_add(more.bytes);
    }

    /// What is to be shown now. `None` for the time is the end: everything.
    pub(super) fn due(&mut self, now_ms: Option<u64>) -> Vec<Event> {
        let is_due = |tally: &Tally| match (now_ms, tally.shown_ms) {
            (Some(now_ms), Some(shown_ms)) => now_ms.saturating_sub(shown_ms) >= TOGETHER_MS,
            _ => true,
        };
        let mut events = Vec::new();
        self.kinds.retain(|(deed, source), tally| {
            if !is_due(tally) {
                return true;
            }
            let amount = std::mem::take(&mut tally.amount);
            tally.shown_ms = now_ms;
            if amount.times > 0 {
                events.push(deed.event(amount, Origin { source: *source, ..tally.origin }));
            }
            // What did not go on needs no place.
            amount.times > 0
        });
        events
    }

    /// Where it is counted: by itself, or with others when there are too many.
    fn place_for(&self, deed: Deed, origin: Origin) -> (Deed, Option<IpAddr>) {
        let key = (deed, origin.source);
        if self.kinds.len() < MAX_KINDS || self.kinds.contains_key(&key) {
            return key;
        }
        let (deed, _) = key;
        let together = (Deed { subject: String::new(), detail: String::new(), ..deed }, None);
        if self.kinds.len() < MAX_KINDS + MAX_CALLERS || self.kinds.contains_key(&together) {
            return together;
        }
        (Deed { who: OTHERS.to_owned(), ..together.0 }, None)
    }
}

impl Deed {
    fn event(&self, amount: Amount, origin: Origin) -> Event {
        let Self { who, action, subject, outcome, detail } = self.clone();
        let counted = match (amount.times, amount.bytes) {
            (1, 0) => String::new(),
            (1, bytes) => format!("{bytes} bytes"),
            (times, 0) => format!("{times} times"),
            (times, bytes) => format!("{times} times, {bytes} bytes"),
        };
        let separator = if detail.is_empty() || counted.is_empty() { "" } else { "; " };
        let event = Event {
            who,
            source: String::new(),
            action: action.into_owned(),
            subject,
            outcome,
            detail: format!("{detail}{separator}{counted}"),
            trace: String::new(),
        };
        event.from(&origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deed(who: &str, subject: &str) -> Deed {
        Deed {
            who: who.to_owned(),
            action: "cas.write".into(),
            subject: subject.to_owned(),
            outcome: Outcome::Done,
            detail: String::new(),
        }
    }

    fn details(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.detail.as_str()).collect()
    }

    #[test]
    fn the_first_is_shown_at_once_and_the_rest_once_a_minute() {
        let mut tallies = Tallies::default();
        tallies.add(deed("a", "ci"), Origin::default(), Amount::once(5));
        assert_eq!(details(&tallies.due(Some(1000))), ["5 bytes"]);
        for _ in 0..3 {
            tallies.add(deed("a", "ci"), Origin::default(), Amount::once(10));
        }
        assert_eq!(details(&tallies.due(Some(2000))), [""; 0]);
        assert_eq!(details(&tallies.due(Some(60_999))), [""; 0]);
        assert_eq!(details(&tallies.due(Some(61_000))), ["3 times, 30 bytes"]);
        assert_eq!(tallies.kinds.len(), 1, "it may go on");
        assert_eq!(details(&tallies.due(Some(121_000))), [""; 0]);
        assert_eq!(tallies.kinds.len(), 0, "it did not");
    }

    #[test]
    fn at_the_end_everything_is_shown() {
        let mut tallies = Tallies::default();
        tallies.add(deed("a", "ci"), Origin::default(), Amount::ONCE);
        tallies.due(Some(1000));
        tallies.add(Deed { detail: "why".to_owned(), ..deed("a", "ci") }, Origin::default(), Amount::ONCE);
        tallies.add(deed("a", "ci"), Origin::default(), Amount::ONCE);
        tallies.add(deed("a", "ci"), Origin::default(), Amount::ONCE);
        let mut shown = tallies.due(None);
        shown.sort_by(|a, b| a.detail.cmp(&b.detail));
        assert_eq!(details(&shown), ["2 times", "why"]);
        assert_eq!(details(&tallies.due(None)), [""; 0]);
    }

    #[test]
    fn a_flood_is_counted_together_and_nothing_is_forgotten() {
        let mut tallies = Tallies::default();
        let flood = 4 * (MAX_KINDS + MAX_CALLERS);
        for number in 0..flood {
            let who = if number % 2 == 0 { "one".to_owned() } else { format!("many-{number}") };
            tallies.add(deed(&who, &number.to_string()), Origin::default(), Amount::once(1));
        }
        assert!(tallies.kinds.len() <= MAX_KINDS + MAX_CALLERS + 1, "{}", tallies.kinds.len());
        assert!(tallies.kinds.keys().any(|(deed, _)| deed.who == OTHERS));
        let together = tallies.kinds.iter().find(|((deed, _), _)| deed.who == "one" && deed.subject.is_empty());
        assert!(together.is_some_and(|(_, tally)| tally.amount.times > MAX_CALLERS as u64));
        let counted: u64 = tallies.kinds.values().map(|tally| tally.amount.times).sum();
        assert_eq!(counted, flood as u64);
    }
}
