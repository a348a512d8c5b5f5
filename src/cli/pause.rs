//! `outrigger pause|resume`

use std::process::ExitCode as Code;

use serde_json::{Value, json};

use super::{
    access::{Access, user},
    show,
};
use crate::{
    admin::askers::told,
    agent::{keep_pause, queue_options},
    cli::args::{PauseArgs, ResumeArgs},
    config::{Config, units},
    gate::pause::Pause,
    observe::report::Failure,
    runtime::clock::{now_ms, rfc3339},
};

pub fn pause(config: &Config, args: &PauseArgs) -> Result<Code, Failure> {
    let lasts = args.lasts.map(units::show_duration);
    let answer = match Access::open(config)? {
        Access::Agent(client) => {
            let mut body = json!({});
            if let Some(lasts) = args.lasts {
                body["for"] = json!(format!("{}ms", lasts.as_millis()));
            }
            if let Some(reason) = &args.why.reason {
                body["reason"] = json!(reason);
            }
            client.because(&args.why).post("/api/sync/pause", &body)?
        }
        Access::Queue(queue) => {
            let since_ms = now_ms();
            let until_ms = args.lasts.map(|lasts| since_ms + lasts.as_millis() as u64);
            let reason = args.why.reason.as_deref().map(told).filter(|why| !why.is_empty());
            let by = Some(told(&user()));
            let pause = Pause { since_ms, until_ms, reason, by };
            keep_pause(&queue, &queue_options(config), Some(&pause))?;
            let (since, until) = (rfc3339(since_ms), until_ms.and_then(rfc3339));
            json!({ "paused": true, "since": since, "until": until, "reason": pause.reason, "by": pause.by })
        }
    };
    let until = answer["until"].as_str();
    let end = match (until, lasts) {
        (Some(until), Some(lasts)) => format!("it goes on by itself in {lasts}, at {until}"),
        _ => "`outrigger resume` ends it".to_owned(),
    };
    show::result(args.output, &answer, format!("paused: changes wait in the queue; {end}"));
    Ok(Code::SUCCESS)
}

pub fn resume(config: &Config, args: &ResumeArgs) -> Result<Code, Failure> {
    match Access::open(config)? {
        Access::Agent(client) => {
            client.because(&args.why).post("/api/sync/resume", &Value::Null)?;
        }
        Access::Queue(queue) => keep_pause(&queue, &queue_options(config), None)?,
    }
    show::result(args.output, &json!({ "paused": false }), "resumed");
    Ok(Code::SUCCESS)
}

/// What `status` says of a pause.
pub fn sentence(pause: &Value) -> String {
    let text = |key: &str| pause[key].as_str();
    let by = text("by").map_or_else(String::new, |by| format!(" by {by}"));
    let since = text("since").map_or_else(String::new, |since| format!(" since {since}"));
    let until = text("until").map_or_else(
        || " until `outrigger resume`".to_owned(),
        |until| format!(" until {until}, or `outrigger resume`"),
    );
    let reason = text("reason").map_or_else(String::new, |reason| format!(": {reason}"));
    format!("writing is paused{by}{since}{until}{reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_told_with_what_is_known_of_it() {
        let known =
            json!({ "by": "ann", "since": "T1", "until": "T2", "reason": "Atlas is moved" });

        assert_eq!(
            sentence(&known),
            "writing is paused by ann since T1 until T2, or `outrigger resume`: Atlas is moved"
        );
        assert_eq!(sentence(&Value::Null), "writing is paused until `outrigger resume`");
    }
}
