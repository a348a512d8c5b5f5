//! What a command says to a person, line by line.

use super::agent::Agent;

/// With its exit code.
pub struct Said {
    pub code: i32,
    pub text: String,
}

impl Said {
    pub fn by(agent: &Agent, args: &[&str]) -> Self {
        let output = agent.cli(args);
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        Self { code: output.status.code().unwrap(), text }
    }

    /// A finding with this verdict and these words, and with this to do.
    pub fn has(&self, verdict: &str, words: &str, fix: &str) {
        let mut lines = self.text.lines();
        let found = lines.find(|line| line.contains(words));
        let found = found.unwrap_or_else(|| panic!("`{words}` is missing: {}", self.text));
        assert!(found.starts_with(verdict), "{verdict}: {found}");
        if verdict != "ok" {
            let next = lines.next().unwrap_or_default();
            assert!(next.contains("fix: ") && next.contains(fix), "`{fix}`: {}", self.text);
        }
    }

    pub fn has_not(&self, words: &str) {
        assert!(!self.text.contains(words), "`{words}`: {}", self.text);
    }
}
