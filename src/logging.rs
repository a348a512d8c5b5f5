//! Log lines on stderr, as text or JSON.

use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::LogFormat;

/// Starts logging. Results go to stdout, so logs never mix with them.
///
/// `level` is one of error, warn, info, debug and trace, or a list of targets; the configuration has
/// checked it. The driver and the queue's storage speak from `warn` on, whatever is asked for us.
pub fn start(level: &str, format: LogFormat) {
    let targets = level.parse::<Targets>().unwrap_or_default().with_targets([
        ("mongodb", tracing::Level::WARN),
        ("sled", tracing::Level::WARN),
        ("hyper", tracing::Level::WARN),
    ]);
    let registry = tracing_subscriber::registry().with(targets);
    // A second start, as in a test, keeps the first.
    let _ = match format {
        LogFormat::Text => {
            let layer = fmt::layer().with_writer(std::io::stderr).with_target(false);
            registry
                .with(layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())))
                .try_init()
        }
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(std::io::stderr)
                    .with_target(false),
            )
            .try_init(),
    };
}
