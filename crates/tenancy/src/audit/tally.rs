//! What happens often is counted: who did what with what, and how it ended, is one record a minute with a count.
//!
//! Pure: no clock, no store. What always holds: what was counted once is shown at the next asking, what goes on is shown
//! once a minute (counted together, every ten), and nothing counted is forgotten. The number of things counted at one time is bounded: when there are
//! too many, they are counted together, first without what, where from and why, then without who. What strangers try,
//! what callers without a name do, what known ones are denied and what they do has a bound each, and so has each caller
//! within it, so that none of them hides the others; and all have a bound in an hour, so that nobody fills the log.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use super::{Event, Origin, Outcome};

/// How long what goes on is counted before it is shown again ...
const TOGETHER_MS: u64 = 60_000;
/// ... and what is counted together with others, of which there may be much.
const MUCH_TOGETHER_MS: u64 = 600_000;
/// Things of a share that are counted each by itself.
const MAX_KINDS: usize = 2048;
const HOUR_MS: u64 = 3_600_000;
/// Of whose deeds of one kind are counted together, once there are that many.
const MAX_CALLERS: usize = 512;

/// How much of a share one caller may have, and all of them: what is beyond is counted together. Records are those in an
/// hour.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    kinds_of_one: usize,
    records_of_one: usize,
    records: usize,
}

/// What strangers try is all of one caller.
const STRANGERS: Bounds = Bounds { kinds_of_one: MAX_KINDS, records_of_one: 1000, records: 1000 };
/// So is what is done without a name.
const NAMELESS: Bounds = Bounds { kinds_of_one: MAX_KINDS, records_of_one: 5000, records: 5000 };
/// Whoever is denied so much looks for something, or is not set up well: the first of it tells which.
const DENIALS: Bounds = Bounds { kinds_of_one: 64, records_of_one: 500, records: 5000 };
/// One token may be that of all jobs of a CI, on many machines.
const DEEDS: Bounds = Bounds { kinds_of_one: 512, records_of_one: 5000, records: 50_000 };
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
    /// The tenant whose administrators are shown it; empty for none.
    pub tenant: String,
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
    /// Whether it is counted by itself.
    place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Own,
    /// With everything else of that kind that its caller does.
    OfCaller,
    /// With what others do.
    OfMany,
}

impl Place {
    const fn shown_every_ms(self) -> u64 {
        match self {
            Self::Own => TOGETHER_MS,
            Self::OfCaller | Self::OfMany => MUCH_TOGETHER_MS,
        }
    }
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
        let [strangers, nameless, denials, deeds] = [STRANGERS, NAMELESS, DENIALS, DEEDS].map(Share::new);
        Self { strangers, nameless, denials, deeds }
    }
}

impl Tallies {
    /// Counts some more.
    pub(super) fn add(&mut self, deed: Deed, origin: Origin, more: Amount) {
        self.share(&deed).add(deed, origin, more);
    }

    /// Whether something more that a stranger tried may have a record by itself, which it takes: half of their records in an
    /// hour, so that the rest is left for what is counted.
    pub(super) fn takes_stranger(&mut self) -> bool {
        let Share { bounds, alone, shown, .. } = &mut self.strangers;
        let takes = *alone < bounds.records / 2 && shown.1 < bounds.records;
        *alone += usize::from(takes);
        shown.1 += usize::from(takes);
        takes
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
    bounds: Bounds,
    kinds: HashMap<(Deed, Option<IpAddr>), Tally>,
    /// Of all whose deeds are counted, or were in this hour.
    callers: HashMap<String, Caller>,
    /// Of all kinds, those that are all that a caller does.
    of_callers: usize,
    /// When the hour began, and the records since.
    shown: (u64, usize),
    /// Of those, what was not counted.
    alone: usize,
}

/// How much of a share somebody has.
#[derive(Clone, Copy, Debug, Default)]
struct Caller {
    /// What is counted each by itself.
    kinds: usize,
    /// The records in this hour.
    shown: usize,
}

impl Share {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, kinds: HashMap::new(), callers: HashMap::new(), of_callers: 0, shown: (0, 0), alone: 0 }
    }

    fn add(&mut self, deed: Deed, origin: Origin, more: Amount) {
        let (key, place) = self.place_for(deed, origin);
        if !self.kinds.contains_key(&key) {
            self.callers.entry(key.0.who.clone()).or_default().kinds += 1;
            self.of_callers += usize::from(place == Place::OfCaller);
        }
        let tally = self.kinds.entry(key).or_insert_with(|| Tally { place, ..Tally::default() });
        if tally.amount.times == 0 {
            tally.origin = origin;
        }
        tally.amount.times = tally.amount.times.saturating_add(more.times);
        tally.amount.bytes = tally.amount.bytes.saturating_add(more.bytes);
    }

    fn due(&mut self, now_ms: Option<u64>) -> Vec<Event> {
        let is_due = |tally: &Tally| match (now_ms, tally.shown_ms) {
            (Some(now_ms), Some(shown_ms)) => now_ms.saturating_sub(shown_ms) >= tally.place.shown_every_ms(),
            _ => true,
        };
        let mut events = Vec::new();
        self.begin_hour(now_ms);
        let (callers, of_callers) = (&mut self.callers, &mut self.of_callers);
        self.kinds.retain(|(deed, source), tally| {
            if !is_due(tally) {
                return true;
            }
            let amount = std::mem::take(&mut tally.amount);
            tally.shown_ms = now_ms;
            let goes_on = amount.times > 0;
            if let Some(caller) = callers.get_mut(&deed.who) {
                caller.shown += usize::from(goes_on);
                caller.kinds -= usize::from(!goes_on);
            }
            *of_callers -= usize::from(!goes_on && tally.place == Place::OfCaller);
            if goes_on {
                events.push(deed.event(amount, Origin { source: *source, ..tally.origin }));
            }
            // What did not go on needs no place.
            goes_on
        });
        self.shown.1 = self.shown.1.saturating_add(events.len());
        events
    }

    /// Once an hour everybody has all of their records again.
    fn begin_hour(&mut self, now_ms: Option<u64>) {
        let Some(now_ms) = now_ms.filter(|now_ms| now_ms.saturating_sub(self.shown.0) >= HOUR_MS) else { return };
        (self.shown, self.alone) = ((now_ms, 0), 0);
        self.callers.retain(|_, caller| caller.kinds > 0);
        self.callers.values_mut().for_each(|caller| caller.shown = 0);
    }

    /// Where it is counted: by itself, or with others when there are too many.
    fn place_for(&self, deed: Deed, origin: Origin) -> ((Deed, Option<IpAddr>), Place) {
        let key = (deed, origin.source);
        let Bounds { kinds_of_one, records_of_one, records } = self.bounds;
        let own = self.callers.get(&key.0.who).copied().unwrap_or_default();
        let is_in_bounds = self.shown.1.saturating_add(self.kinds.len()) < records
            && own.shown.saturating_add(own.kinds) < records_of_one;
        let has_place = self.kinds.len() < MAX_KINDS && own.kinds < kinds_of_one;
        if is_in_bounds && (has_place || self.kinds.contains_key(&key)) {
            return (key, Place::Own);
        }
        let (deed, _) = key;
        let together = (Deed { subject: String::new(), detail: String::new(), ..deed }, None);
        if self.of_callers < MAX_CALLERS || self.kinds.contains_key(&together) {
            return (together, Place::OfCaller);
        }
        ((Deed { who: OTHERS.to_owned(), tenant: String::new(), ..together.0 }, None), Place::OfMany)
    }
}

impl Deed {
    fn event(&self, amount: Amount, origin: Origin) -> Event {
        let Self { who, action, subject, outcome, detail, tenant } = self.clone();
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
            tenant,
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
            tenant: String::new(),
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
            // Callers that do no more than others do in an hour.
            tallies.add(deed(&format!("a{}", second % 2), &second.to_string()), Origin::default(), Amount::ONCE);
            let denied = Deed { outcome: Outcome::Denied, ..deed(&format!("b{}", second % 50), &second.to_string()) };
            tallies.add(denied, Origin::default(), Amount::ONCE);
            let events = tallies.due(Some(second as u64 * 1000));
            shown += events.iter().filter(|event| event.who == "unknown").count();
            seen += events.iter().filter(|event| event.who != "unknown" && event.subject == second.to_string()).count();
        }
        assert_eq!(seen, 6000, "others are shown each by itself");
        assert!(shown <= STRANGERS.records + 60, "{shown}");
        // The next hour they are heard again.
        tallies.due(Some(2 * HOUR_MS));
        tallies.due(Some(2 * HOUR_MS + TOGETHER_MS));
        tallies.add(tried(0), Origin::default(), Amount::ONCE);
        assert_eq!(
            tallies.due(Some(2 * HOUR_MS + 2 * TOGETHER_MS)).first().map(|event| event.subject.as_str()),
            Some("0")
        );
    }

    #[test]
    fn one_caller_neither_hides_the_others_nor_fills_the_log() {
        for outcome in [Outcome::Denied, Outcome::Done] {
            let mut tallies = Tallies::default();
            let (mut flooding, mut others, mut times) = (0, 0, 0);
            for second in 0..3700_u64 {
                // Another name each time: of instances that are not there, and of such that are.
                for number in 0..20 {
                    let subject = format!("{second}-{number}");
                    let one = Deed { outcome, ..deed("token:0123456789", &subject) };
                    tallies.add(one, Origin::default(), Amount::ONCE);
                }
                let source = Some(IpAddr::from([192, 0, 2, 7]));
                let who = format!("token:{:010}", second % 40);
                let other = Deed { outcome, ..deed(&who, &format!("of {second}")) };
                tallies.add(other, Origin { source, trace: None }, Amount::ONCE);
                for event in tallies.due(Some(second * 1000)) {
                    let is_flood = event.who == "token:0123456789";
                    flooding += usize::from(is_flood);
                    others += usize::from(!is_flood && event.source == "192.0.2.7" && event.subject.starts_with("of "));
                    times += is_flood as u64 * event.detail.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(1);
                }
            }
            let of_one = if outcome == Outcome::Denied { DENIALS.records_of_one } else { DEEDS.records_of_one };
            assert!(flooding <= 2 * (of_one + 60), "{outcome:?}: {flooding}");
            assert_eq!(others, 3700, "{outcome:?}: each is shown with what and where from");
            let rest = tallies.due(None).into_iter().filter(|event| event.who == "token:0123456789");
            let rest: u64 = rest.map(|event| event.detail.split(' ').next().unwrap().parse().unwrap_or(1)).sum();
            assert_eq!(times + rest, 20 * 3700, "{outcome:?}: all of it is counted");
        }
    }

    #[test]
    fn strangers_have_few_records_by_themselves() {
        let mut tallies = Tallies::default();
        let alone = |tallies: &mut Tallies| (0..10_000).filter(|_| tallies.takes_stranger()).count();
        assert_eq!(alone(&mut tallies), STRANGERS.records / 2);
        let tried = Deed { outcome: Outcome::Denied, ..deed("unknown", "x") };
        tallies.add(tried, Origin::default(), Amount::ONCE);
        assert_eq!(tallies.due(Some(HOUR_MS - 1)).len(), 1, "there is room for others");
        assert_eq!(alone(&mut tallies), 0);
        tallies.due(Some(HOUR_MS));
        assert_eq!(alone(&mut tallies), STRANGERS.records / 2);
    }

    #[test]
    fn many_callers_do_not_fill_the_log_either() {
        let mut tallies = Tallies::default();
        let mut shown = 0;
        for second in 0..3600_u64 {
            for number in 0..30 {
                let denied = Deed { outcome: Outcome::Denied, ..deed(&format!("oidc:{second}-{number}"), "x") };
                tallies.add(denied, Origin::default(), Amount::ONCE);
            }
            shown += tallies.due(Some(second * 1000)).len();
            assert!(tallies.denials.callers.len() <= DENIALS.records + 7 * MAX_CALLERS, "memory is bounded");
        }
        assert!(shown <= DENIALS.records + 7 * (MAX_CALLERS + 1), "{shown}");
    }
}
