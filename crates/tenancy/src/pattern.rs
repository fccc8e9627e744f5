//! Names with `*` in them.

use std::fmt;
use std::sync::Arc;

/// A name in which each `*` stands for any characters, or none.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Takes the text. Every text is a pattern; without `*` it fits itself.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it fits every name.
    #[must_use]
    pub fn is_any(&self) -> bool {
        &*self.0 == "*"
    }

    /// Whether it fits this name. Takes time in proportion to the product of both lengths at most.
    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut taken) = (0, 0);
        // Where to go on when what follows the last star does not fit: after the star, and one more character under it.
        let mut retry: Option<(usize, usize)> = None;
        while taken < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    retry = Some((at + 1, taken));
                    at += 1;
                }
                Some(byte) if *byte == name[taken] => {
                    at += 1;
                    taken += 1;
                }
                _ => {
                    let Some((after_star, under_star)) = retry else { return false };
                    retry = Some((after_star, under_star + 1));
                    (at, taken) = (after_star, under_star + 1);
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        let check = |pattern: &str, fitting: &[&str], others: &[&str]| {
            for name in fitting {
                assert!(Pattern::new(pattern).fits(name), "{pattern} {name}");
            }
            for name in others {
                assert!(!Pattern::new(pattern).fits(name), "{pattern} {name}");
            }
        };
        check("main", &["main"], &["", "mai", "main2", "Main", "xmain"]);
        check("*", &["", "a", "*"], &[]);
        check("ci-*", &["ci-", "ci-x"], &["ci", "xci-"]);
        check("*-ci", &["-ci", "x-ci", "-ci-ci"], &["ci", "-ci-"]);
        check("a*b*c", &["abc", "a-b-c", "abbcc", "abcbc"], &["ab", "acb", "abcd"]);
        check("**", &["", "xy"], &[]);
        check("", &[""], &["a"]);
    }

    #[test]
    fn many_stars_are_not_slow() {
        let pattern = Pattern::new(&("a*".repeat(2000) + "b"));
        assert!(!pattern.fits(&"a".repeat(4000)));
    }
}
