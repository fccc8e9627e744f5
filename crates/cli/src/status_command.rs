//! `gf status`: what the server says about itself.

use std::time::Duration;

use gf_server::config::show_duration;
use gf_server::operator::report::Status;

use crate::args::StatusArgs;
use crate::client::Client;
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, print};
use crate::store_command::show_stats;

pub(crate) fn run(args: StatusArgs) -> Result<(), Failure> {
    let server = args.server.server.clone();
    let status: Status = Client::new(args.server)?.get("/api/v1/status")?;
    print(Format::from(args.json), &status, |status| show(&server, status))?;
    match status.not_ready {
        None => Ok(()),
        Some(reason) => Err(Failure::new(FailureKind::NotSo, reason)),
    }
}

fn show(server: &str, status: &Status) -> String {
    let Status { version, uptime_seconds, not_ready, tenants, store } = status;
    let ready = if not_ready.is_none() { "ready" } else { "NOT READY" };
    // The largest unit says enough here.
    let seconds = match *uptime_seconds {
        0..60 => *uptime_seconds,
        60..3600 => uptime_seconds - uptime_seconds % 60,
        3600..86_400 => uptime_seconds - uptime_seconds % 3600,
        _ => uptime_seconds - uptime_seconds % 86_400,
    };
    let uptime = show_duration(Duration::from_secs(seconds));
    let tenants = tenants.join(", ");
    format!("server    {server}, gf {version}, {ready}, up for {uptime}\ntenants   {tenants}\n{}", show_stats(store))
}
