//! The scheduler among thousands of workers and clients that lose, forget, repeat and delay, in made-up time.
//!
//! After every effect a model of the world checks that no execution runs twice at once, that no worker is given more
//! than it has or what it cannot run, that everything is completed once, and that no more is kept than lives; in the end,
//! that nothing was lost and nothing is kept. In a world with one kind of worker, and never enough of them, it checks that
//! tenants with very different numbers of clients get the same; and with caps that come, change and go, that no tenant has
//! more on workers than it may, and that nothing else waits beside a worker with room. `GF_SIMULATION_SEEDS=100` tries more seeds, `GF_SIMULATION_SEED=7` that one.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a test fails by panicking")]

mod scheduler_simulation {
    pub(crate) mod model;
    pub(crate) mod shares;
    pub(crate) mod world;
}

use scheduler_simulation::world::{Kind, World};

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    match number("GF_SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("GF_SIMULATION_SEEDS").unwrap_or(4)).collect(),
    }
}

#[test]
fn nothing_is_lost_run_twice_or_kept() {
    for seed in seeds() {
        let kind = if seed.is_multiple_of(2) { Kind::Wide } else { Kind::Tight };
        let said = World::new(seed, kind).run();
        println!("seed {seed}: {said}");
    }
}

#[test]
fn nobody_has_more_than_its_cap_and_nothing_else_waits_beside_room() {
    for seed in seeds() {
        let said = World::new(seed, Kind::Capped).run();
        println!("seed {seed}: {said}");
    }
}

#[test]
fn tenants_that_wait_get_the_same() {
    for seed in seeds() {
        let said = World::new(seed, Kind::Even).run();
        println!("seed {seed}: {said}");
    }
}
