//! What a user sees while a scenario runs: a line that is written over on a terminal, else a line
//! for each step.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// After this a user wonders.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module. Cheap to clone; clones are the same line.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// Absent where nobody is to be told, or no terminal is.
    bar: Option<ProgressBar>,
    is_quiet: bool,
}

impl Progress {
    pub(crate) fn new(is_quiet: bool) -> Self {
        let has_bar = !is_quiet && std::io::stderr().is_terminal();
        let bar = has_bar.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>5} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, is_quiet }
    }

    /// Says something that stays.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // A user who does not want to read it is no reason to end.
            None if !self.is_quiet => drop(writeln!(std::io::stderr(), "{text}")),
            None => (),
        }
    }

    /// Says something that the next message replaces; on a terminal only.
    pub(crate) fn show(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }

    /// Does `work`, and says what is waited for if that takes longer than most runs take.
    pub(crate) async fn patiently<T>(&self, text: &str, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        if let Ok(done) = tokio::time::timeout(PATIENCE, &mut work).await {
            return done;
        }
        self.say(text);
        work.await
    }

    pub(crate) fn step(&self, name: &str) {
        self.show(name.to_owned());
    }

    pub(crate) fn ended(&self, name: &str, seconds: f64, failure: Option<&str>) {
        match failure {
            None => self.say(&format!("{name}: {seconds:.1} s")),
            Some(failure) => self.say(&format!("{name}: {failure}")),
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
