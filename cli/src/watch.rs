//! Who watches a job: the progress bar, the event file, the operator's Ctrl-C.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context;
use failback_engine::{CancelToken, Event, Observer, Stamped};

use crate::progress::Bar;

/// Passes events on to whatever was asked for.
pub(crate) struct Watchers {
    bar: Option<Bar>,
    /// Warnings are told in words, unless stderr carries the events.
    tells_warnings: bool,
    events: Option<Mutex<Box<dyn Write + Send>>>,
}

impl Watchers {
    /// A bar if stderr is a terminal that is not used for events, and the event file.
    ///
    /// # Errors
    /// The event file cannot be made.
    pub(crate) fn new(events: Option<&Path>) -> anyhow::Result<Self> {
        Self::with(events, |path| File::create(path))
    }

    /// The same for one of several processes of a job: what the others wrote stays.
    ///
    /// # Errors
    /// As [`Watchers::new`].
    pub(crate) fn of_job(events: Option<&Path>) -> anyhow::Result<Self> {
        Self::with(events, |path| {
            File::options().append(true).create(true).open(path)
        })
    }

    fn with(
        events: Option<&Path>,
        open: impl FnOnce(&Path) -> std::io::Result<File>,
    ) -> anyhow::Result<Self> {
        let is_on_stderr = events == Some(Path::new("-"));
        let events: Option<Box<dyn Write + Send>> = match events {
            None => None,
            Some(_) if is_on_stderr => Some(Box::new(std::io::stderr())),
            Some(path) => {
                let file =
                    open(path).with_context(|| format!("{}: create event file", path.display()))?;
                Some(Box::new(file))
            }
        };
        let bar = (!is_on_stderr && std::io::stderr().is_terminal()).then(Bar::new);
        Ok(Self {
            bar,
            tells_warnings: !is_on_stderr,
            events: events.map(Mutex::new),
        })
    }
}

impl Observer for Watchers {
    fn event(&self, event: &Event) {
        if let Some(bar) = &self.bar {
            bar.event(event);
        }
        if let (true, Event::Warning { message }) = (self.tells_warnings, event) {
            crate::output::note(&format!("warning: {message}"));
        }
        if let Some(events) = &self.events {
            let mut events = events
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            // An event that cannot be written must not end the job that it is about.
            if let Ok(mut line) = serde_json::to_vec(&Stamped::now(event)) {
                line.push(b'\n');
                drop(events.write_all(&line).and_then(|()| events.flush()));
            }
        }
    }
}

/// A token that Ctrl-C and SIGTERM cancel; the second one ends the process at once, which nothing
/// here depends on.
///
/// # Errors
/// The system refuses a handler.
pub(crate) fn cancel_on_signals() -> anyhow::Result<CancelToken> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    // A lost terminal ends a job in order, too.
    #[cfg(unix)]
    let signals = [SIGINT, SIGTERM, signal_hook::consts::SIGHUP];
    #[cfg(not(unix))]
    let signals = [SIGINT, SIGTERM];
    const EXIT_CANCELLED: i32 = 7;
    let token = CancelToken::new();
    for signal in signals {
        signal_hook::flag::register_conditional_shutdown(signal, EXIT_CANCELLED, token.flag())?;
        signal_hook::flag::register(signal, token.flag())?;
    }
    Ok(token)
}
