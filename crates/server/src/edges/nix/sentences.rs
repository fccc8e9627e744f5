//! What is said of paths, for people.

use std::time::{Duration, UNIX_EPOCH};

use gf_nix_cache::{Keeper, Link, WhyRemoved};
use gf_nix_formats::StorePath;

use crate::config::{show_duration, show_size};

pub(super) fn link_sentence(link: &Link) -> String {
    match link {
        Link::Published { at_s, upstream: None } => format!("it was pushed {}", ago(*at_s)),
        Link::Published { at_s, upstream: Some(upstream) } => format!("it came from {upstream} {}", ago(*at_s)),
        Link::NotPublished { asked } if asked.is_empty() => "nobody pushed it: push it with `gf nix push`".to_owned(),
        Link::NotPublished { asked } => {
            format!("nobody pushed it, and it is not in {} either: push it with `gf nix push`", asked.join(", "))
        }
        Link::Unknown { reason } => format!("it cannot be known now whether it is there: {reason}"),
        Link::ClosureComplete { paths } => format!("its closure of {paths} paths is complete"),
        Link::WaitsFor(missing) => {
            format!("it is hidden until these are pushed, to which it refers: {}", names(missing))
        }
        Link::Signed { keys, is_content_addressed: true } if keys.is_empty() => {
            "its content names it, so that it needs no signature".to_owned()
        }
        Link::Signed { keys, .. } => format!("it is signed with {}", keys.join(", ")),
        Link::ArchiveHere { nar_bytes } => format!("its archive is here and whole ({})", show_size(*nar_bytes)),
        Link::ArchiveUpstream { upstream } => format!("its archive is fetched from {upstream} when it is read first"),
        Link::ArchiveMissing => "its archive is not here: push it again".to_owned(),
        Link::ArchiveUnknown { reason } => format!("it cannot be known now whether its archive is whole: {reason}"),
    }
}

pub(super) fn keeper_sentence(keeper: &Keeper) -> String {
    match keeper {
        Keeper::Pin(name) => format!("the pin {name} keeps it"),
        Keeper::Referrers(some, more) if *more > 0 => format!("{} and {more} more refer to it", names(some)),
        Keeper::Referrers(some, _) => format!("referred to by {}", names(some)),
        Keeper::Used(at_s) => format!("it was used {}", ago(*at_s)),
        Keeper::Served(at_s) => format!("a client was told of it {}", ago(*at_s)),
    }
}

pub(super) fn removal_sentence(why: &WhyRemoved) -> String {
    match why {
        WhyRemoved::Unused { for_s } => format!("not used for {}", duration(*for_s)),
        WhyRemoved::OverQuota => "over the quota, and used least recently".to_owned(),
        WhyRemoved::NeverComplete => "what it refers to never came".to_owned(),
    }
}

fn names(paths: &[StorePath]) -> String {
    paths.iter().map(StorePath::as_str).collect::<Vec<_>>().join(", ")
}

fn ago(at_s: u64) -> String {
    let now_s = UNIX_EPOCH.elapsed().map_or(at_s, |now| now.as_secs());
    format!("{} ago", duration(now_s.saturating_sub(at_s)))
}

/// In whole units of a size that says enough.
fn duration(seconds: u64) -> String {
    let unit = match seconds {
        0..60 => 1,
        60..3600 => 60,
        3600..86_400 => 3600,
        _ => 86_400,
    };
    show_duration(Duration::from_secs(seconds - seconds % unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_names_the_next_step() {
        for broken in [Link::NotPublished { asked: vec!["https://a.example".to_owned()] }, Link::ArchiveMissing] {
            let sentence = link_sentence(&broken);
            assert!(broken.is_broken() && sentence.contains("push it"), "{sentence}");
        }
        let hash = "0".repeat(32);
        let missing = StorePath::parse(&format!("{hash}-lost")).unwrap();
        assert!(link_sentence(&Link::WaitsFor(vec![missing.clone()])).ends_with(&format!("{hash}-lost")));
        assert!(keeper_sentence(&Keeper::Referrers(vec![missing], 3)).ends_with("and 3 more refer to it"));
        assert_eq!(removal_sentence(&WhyRemoved::Unused { for_s: 90_000 }), "not used for 1 d");
    }
}
