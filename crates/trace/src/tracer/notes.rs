//! What people should know of a trace: what is not seen, and why. Attaching again notes nothing twice.

/// Notes, in the order in which they came.
#[derive(Default)]
pub(super) struct Notes(Vec<String>);

impl Notes {
    /// Those of loading.
    pub(super) fn new(notes: Vec<String>) -> Notes {
        Notes(notes)
    }

    /// Adds one, if it is not there yet.
    pub(super) fn add(&mut self, note: String) {
        if !self.0.contains(&note) {
            self.0.push(note);
        }
    }

    /// Adds that an interface is gone.
    pub(super) fn add_gone(&mut self, interface: &str) {
        self.add(format!("{interface} is gone, and is not traced any more"));
    }

    pub(super) fn all(&self) -> &[String] {
        &self.0
    }

    pub(super) fn into_all(self) -> Vec<String> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_noted_twice() {
        let mut notes = Notes::new(vec!["loading".to_owned()]);
        for note in ["one", "loading", "other", "one"] {
            notes.add(note.to_owned());
        }
        assert_eq!(notes.all(), ["loading", "one", "other"]);
        assert_eq!(notes.into_all().len(), 3);
    }
}
