//! `[tenant.quota]`: what a tenant may use.

use std::num::NonZeroU32;

use super::reader::Section;
use super::units::{parse_size, show_size};
use super::within;
use crate::quotas::Quota;

/// Less than this holds nothing that a build makes.
const LEAST_BYTES: u64 = 1 << 20;

pub(super) fn read(quota: &mut Section<'_, '_>) -> Quota {
    let size = |text: &str| within(parse_size(text)?, LEAST_BYTES, u64::MAX, show_size);
    let count = |number: u64| {
        let number = u32::try_from(number).map_err(|_| format!("{number} is too much: at most {}", u32::MAX))?;
        NonZeroU32::new(number).ok_or_else(|| "0 would refuse everything: leave it out for no limit".to_owned())
    };
    Quota {
        stored_bytes: quota.text("stored", size).map(|at| at.value),
        uploaded_bytes_a_day: quota.text("uploaded_a_day", size).map(|at| at.value),
        executions: quota.number("executions", count).map(|at| at.value),
        requests_a_second: quota.number("requests_a_second", count).map(|at| at.value.get()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gf_tenancy::TenantName;

    use super::super::{Config, Environment, Overrides};
    use super::*;

    fn parse(text: &str) -> Result<Quota, String> {
        let environment = Environment { state_dir: Some("/state".into()), ..Environment::default() };
        let config = Config::parse(Some(Path::new("gf.toml")), text, Overrides::default(), &environment);
        let config = config.map_err(|errors| errors.to_string())?;
        Ok(config.quotas.get(&TenantName::new("org-acme").unwrap()).copied().unwrap_or_default())
    }

    #[test]
    fn quotas() {
        let tenant = "[[tenant]]\nname = \"org-acme\"\n";
        let check = |text: &str, expected: Result<Quota, &str>| match (parse(&format!("{tenant}{text}")), expected) {
            (Ok(quota), Ok(expected)) => assert_eq!(quota, expected, "{text}"),
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (parsed, _) => panic!("{text} is {parsed:?}"),
        };
        check("", Ok(Quota::default()));
        let all =
            "[tenant.quota]\nstored = \"2GiB\"\nuploaded_a_day = \"1GiB\"\nexecutions = 8\nrequests_a_second = 50";
        let expected = Quota {
            stored_bytes: Some(2 << 30),
            uploaded_bytes_a_day: Some(1 << 30),
            executions: NonZeroU32::new(8),
            requests_a_second: Some(50),
        };
        check(all, Ok(expected));
        check("[tenant.quota]\nstored = \"1KiB\"", Err("gf.toml:4: tenant.quota.stored: 1.0 KiB is too little"));
        check("[tenant.quota]\nexecutions = 0", Err("tenant.quota.executions: 0 would refuse everything"));
        check("[tenant.quota]\nrequests = 5", Err("tenant.quota.requests: there is no such key"));
    }
}
