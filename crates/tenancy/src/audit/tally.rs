//! What happens often is counted: who did what with what, and how it ended, is one record a minute with a count.
//!
//! Pure: no clock, no store. What always holds: what was counted once is shown at the next asking, what goes on is shown
//! once a minute, and nothing counted is forgotten. The number of things counted at one time is bounded: when there are
//! too many, they are counted together, first without what, where from and why, then without who. What strangers try,
//! what callers without a name do, what known ones are denied and what they do has a bound each, so that none of them
//! hides the others; what strangers try has few records an hour.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use super::{Event, Origin, Outcome};

/// How long what goes on is counted before it is shown again.
const TOGETHER_MS: u64 = 60_000;
/// Things of a share that are counted each by itself.
const MAX_KINDS: usize = 2048;
/// Records in an hour of what strangers try, after which it is counted together.
const STRANGERS_AN_HOUR: usize = 1000;
const HOUR_MS: u64 = 3_600_000;
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
#[derive(Debug)]
pub(super) struct Tallies {
    strangers: Share,
    nameless: Share,
    denials: Share,
    deeds: Share,
}

impl Default for Tallies {
    fn default() -> Self {
        let [nameless, denials, deeds] = std::array::from_fn(|_| Share::new(usize::MAX));
        Self { strangers: Share::new(STRANGERS_AN_HOUR), nameless, denials, deeds }
    }
}

impl Tallies {
    /// Counts some more.
    pub(super) fn add(&mut self, deed: Deed, origin: Origin, more: Amount) {
        self.share(&deed).add(deed, origin, more);
    }

    /// What is to be shown now. `None` for the time is the end: everything.
    pub(super) fn due(&mut self, now_ms: Option<u64>) -> Vec<Event> {
        let shares = [&mut self.deeds, &mut self.denials, &mut self.nameless, &mut self.strangers];
        shares.into_iter().flat_map(|share| share.due(now_ms)).collect()
    }

    fn share(&mut self, deed: &Deed) -> &mut Share {
        match (deed.who.as_str(), deed.outcome) {
            ("anonymous", Outcome::Done) => &mut self.nameless,
            ("unknown" | "anonymous", _) => &mut self.strangers,
            (_, Outcome::Done) => &mut self.deeds,
            _ => &mut self.denials,
        }
    }
}

/// What is counted within one bound.
#[derive(Debug)]
struct Share {
    kinds: HashMap<(Deed, Option<IpAddr>), Tally>,
    /// Records in an hour, after which what comes is counted together.
    an_hour: usize,
    /// When the hour began, and the records since.
    shown: (u64, usize),
}

impl Share {
    fn new(an_hour: usize) -> Self {
        Self { kinds: HashMap::new(), an_hour, shown: (0, 0) }
    }

    fn add(&mut self, deed: Deed, origin: Origin, more: Amount) {
        let key = self.place_for(deed, origin);
        let tally = self.kinds.entry(key).or_default();
        if tally.amount.times == 0 {
            tally.origin = origin;
        }
        tally.amount.times = tally.amount.times.saturating_add(more.times);
        tally.amount.bytes = tally.amount.bytes.saturating_add(more.bytes);
    }

    fn due(&mut self, now_ms: Option<u64>) -> Vec<Event> {
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
        self.note_shown(now_ms, events.len());
        events
    }

    fn note_shown(&mut self, now_ms: Option<u64>, number: usize) {
        if let Some(now_ms) = now_ms.filter(|now_ms| now_ms.saturating_sub(self.shown.0) >= HOUR_MS) {
            self.shown = (now_ms, 0);
        }
        self.shown.1 = self.shown.1.saturating_add(number);
    }

    /// Where it is counted: by itself, or with others when there are too many.
    fn place_for(&self, deed: Deed, origin: Origin) -> (Deed, Option<IpAddr>) {
        let key = (deed, origin.source);
        let has_room = self.shown.1.saturating_add(self.kinds.len()) < self.an_hour;
        if has_room && (self.kinds.len() < MAX_KINDS || self.kinds.contains_key(&key)) {
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
        assert_eq!(tallies.deeds.kinds.len(), 1, "it may go on");
        assert_eq!(details(&tallies.due(Some(121_000))), [""; 0]);
        assert_eq!(tallies.deeds.kinds.len(), 0, "it did not");
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
        let kinds = &tallies.deeds.kinds;
        assert!(kinds.len() <= MAX_KINDS + MAX_CALLERS + 1, "{}", kinds.len());
        assert!(kinds.keys().any(|(deed, _)| deed.who == OTHERS));
        let together = kinds.iter().find(|((deed, _), _)| deed.who == "one" && deed.subject.is_empty());
        assert!(together.is_some_and(|(_, tally)| tally.amount.times > MAX_CALLERS as u64));
        let counted: u64 = kinds.values().map(|tally| tally.amount.times).sum();
        assert_eq!(counted, flood as u64);
    }

    #[test]
    fn strangers_hide_nobody_and_fill_nothing() {
        let mut tallies = Tallies::default();
        let tried = |number: usize| Deed { outcome: Outcome::Denied, ..deed("unknown", &number.to_string()) };
        let (mut shown, mut seen) = (0, 0);
        for second in 0..3000 {
            for number in 0..5 {
                tallies.add(tried(5 * second + number), Origin::default(), Amount::ONCE);
            }
            tallies.add(deed("a", &second.to_string()), Origin::default(), Amount::ONCE);
            let denied = Deed { outcome: Outcome::Denied, ..deed("b", &second.to_string()) };
            tallies.add(denied, Origin::default(), Amount::ONCE);
            let events = tallies.due(Some(second as u64 * 1000));
            shown += events.iter().filter(|event| event.who == "unknown").count();
            seen += events.iter().filter(|event| event.who != "unknown" && event.subject == second.to_string()).count();
        }
        assert_eq!(seen, 6000, "others are shown each by itself");
        assert!(shown <= STRANGERS_AN_HOUR + 60, "{shown}");
        // The next hour they are heard again.
        tallies.due(Some(2 * HOUR_MS));
        tallies.due(Some(2 * HOUR_MS + TOGETHER_MS));
        tallies.add(tried(0), Origin::default(), Amount::ONCE);
        assert_eq!(
            tallies.due(Some(2 * HOUR_MS + 2 * TOGETHER_MS)).first().map(|event| event.subject.as_str()),
            Some("0")
        );
    }
}
