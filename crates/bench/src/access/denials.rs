//! Whether the time of a denial, or its text, tells what is there.
//!
//! At each door the two questions are asked by turns, one about what is there and one about what is not, and the answers
//! must be the same but for the names. The statistic is the difference of the medians with a 95 % interval by bootstrap:
//! the row passes when no door tells them apart by more than the network would.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::doors::{Door, Visitor, doors};
use crate::load::median;
use crate::process::Server;
use crate::report::Outcome;

/// Denials of each kind.
const DENIALS: usize = 3000;
/// Those before them, which are not counted.
const WARM_UP: usize = 200;
/// Samples of the bootstrap.
const SAMPLES: usize = 400;

/// By how many microseconds what is there is denied later than what is not.
struct Difference {
    median: f64,
    low: f64,
    high: f64,
}

impl Difference {
    /// How far from zero it may be.
    fn most(&self) -> f64 {
        self.low.abs().max(self.high.abs())
    }
}

/// By how many microseconds denials differ for what is there, at the door where that is the most: the distance from zero
/// that the difference has with 95 %.
pub(crate) async fn denials(gf: &Path, data_dir: &Path) -> anyhow::Result<Outcome> {
    let token = data_dir.with_extension("token");
    std::fs::write(&token, "opensesame").with_context(|| format!("write {}", token.display()))?;
    let config = format!(
        "[access]\ntoken_file = \"{}\"\n[[tenant]]\nname = \"org-a\"\n[[tenant]]\nname = \"org-b\"\n",
        token.display()
    );
    let server = Server::product_with(gf, data_dir, &config).await?;
    let mut visitor = Visitor::of(&server.url).await?;
    let (mut figure, mut notes) = (0.0_f64, Vec::new());
    for door in doors(&mut visitor, "opensesame").await? {
        eprintln!("    {} …", door.name);
        let difference = measure(&mut visitor, &door).await.with_context(|| format!("at the door {:?}", door.name))?;
        let Difference { median, low, high } = difference;
        figure = figure.max(difference.most());
        notes.push(format!("{} {median:+.2} ({low:+.2} to {high:+.2})", door.name));
    }
    server.stop().await?;
    let note = format!("differences of medians, with 95 %, {DENIALS} of each: {}", notes.join("; "));
    Ok(Outcome { figure, note, ..Outcome::default() })
}

async fn measure(visitor: &mut Visitor, door: &Door) -> anyhow::Result<Difference> {
    let (mut there, mut absent) = (Vec::with_capacity(DENIALS), Vec::with_capacity(DENIALS));
    for number in 0..DENIALS + WARM_UP {
        // By turns, and each as often the first, so that what else the machine does falls on both.
        let turns = if number % 2 == 0 { [true, false] } else { [false, true] };
        let mut told = Vec::with_capacity(2);
        for is_there in turns {
            let name = if is_there { &door.there } else { &door.absent };
            let began = Instant::now();
            let answer = visitor.ask(door, name).await?;
            let taken = began.elapsed().as_secs_f64() * 1e6;
            // The name of an operation begins with its instance, of which the answer speaks.
            told.push(answer.replace(name, "NAME").replace("org-x", "org-a"));
            if number >= WARM_UP {
                if is_there { there.push(taken) } else { absent.push(taken) }
            }
        }
        let answer = told.first().map_or("", String::as_str);
        ensure!(door.denies(answer), "a denial was {answer}");
        ensure!(told.iter().all(|other| other == answer), "the answers tell what is there: {told:?}");
    }
    Ok(compare(&there, &absent))
}

fn compare(there: &[f64], absent: &[f64]) -> Difference {
    let mut random = SmallRng::seed_from_u64(8);
    let mut drawn: Vec<f64> =
        (0..SAMPLES).map(|_| resampled_median(there, &mut random) - resampled_median(absent, &mut random)).collect();
    drawn.sort_by(f64::total_cmp);
    Difference {
        median: median(there.iter().copied()) - median(absent.iter().copied()),
        low: drawn[SAMPLES / 40],
        high: drawn[SAMPLES - 1 - SAMPLES / 40],
    }
}

fn resampled_median(times: &[f64], random: &mut SmallRng) -> f64 {
    median((0..times.len()).map(|_| times[random.random_range(0..times.len())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_and_none_is_not() {
        let times = |around: f64| (0..500).map(|number| around + f64::from(number % 50)).collect::<Vec<f64>>();
        let same = compare(&times(80.0), &times(80.0));
        assert!(same.most() < 5.0 && same.low <= 0.0 && same.high >= 0.0);
        let other = compare(&times(120.0), &times(80.0));
        assert!((other.median - 40.0).abs() < 1e-9 && other.low > 30.0 && other.most() < 50.0);
    }
}
