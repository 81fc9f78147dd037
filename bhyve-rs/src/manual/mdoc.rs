//! Manual pages in mdoc(7).

/// Longest line of text.
const WIDTH: usize = 78;

/// A page under way.
pub struct Page {
    text: String,
}

/// A text as an argument of a macro: one word, whatever is in it, and no macro itself.
fn argument(text: &str) -> String {
    let text = escaped(text).replace('"', "\\(dq");
    // Short words may be the names of macros, and single characters punctuation.
    let guarded = if text.chars().count() <= 3 { format!("\\&{text}") } else { text };
    if guarded.contains(' ') { format!("\"{guarded}\"") } else { guarded }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e")
}

impl Page {
    /// A page of this name, section and purpose.
    pub fn new(name: &str, section: u8, purpose: &str) -> Page {
        let mut page = Page { text: String::new() };
        page.line(&format!(".Dd {}", date()));
        page.line(&format!(".Dt {} {section}", argument(&name.to_uppercase())));
        page.line(".Os");
        page.section("NAME");
        page.line(&format!(".Nm {}", argument(name)));
        page.line(&format!(".Nd {}", escaped(purpose.trim_end_matches('.'))));
        page
    }

    /// The text of the page.
    pub fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Begins a section.
    pub fn section(&mut self, name: &str) {
        self.line(&format!(".Sh {name}"));
    }

    /// Begins a subsection.
    pub fn subsection(&mut self, name: &str) {
        self.line(&format!(".Ss {}", escaped(name)));
    }

    /// A paragraph begins.
    pub fn paragraph(&mut self) {
        self.line(".Pp");
    }

    /// Text that is filled; each sentence on a line of its own.
    pub fn say(&mut self, text: &str) {
        for (n, paragraph) in text.split("\n\n").enumerate() {
            if n > 0 {
                self.paragraph();
            }
            let filled = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
            for sentence in sentences(&filled) {
                self.fill(&escaped(sentence));
            }
        }
    }

    /// One sentence, on lines that diff(1) and mandoc(1) like.
    fn fill(&mut self, sentence: &str) {
        let mut line = String::new();
        for word in sentence.split(' ') {
            if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
                self.line(&line);
                line.clear();
            }
            match line.is_empty() {
                // A control character at the beginning of a line is a request.
                true if word.starts_with(['.', '\'']) => line.push_str("\\&"),
                true => {}
                false => line.push(' '),
            }
            line.push_str(word);
        }
        self.line(&line);
    }

    /// Text as it stands.
    pub fn literal(&mut self, text: &str) {
        self.line(".Bd -literal -offset indent");
        for line in text.trim_end().lines() {
            let line = escaped(line);
            let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
            self.line(&format!("{guard}{line}"));
        }
        self.line(".Ed");
    }

    /// A line of the synopsis: the program and its words.
    pub fn synopsis(&mut self, name: &str, words: &[Word]) {
        self.line(&format!(".Nm {}", argument(name)));
        for word in words {
            let text = word.text();
            if !text.is_empty() {
                self.line(&format!(".{text}"));
            }
        }
    }

    /// Begins a list of terms.
    pub fn list(&mut self) {
        self.line(".Bl -tag -width Ds");
    }

    /// Ends it.
    pub fn end_list(&mut self) {
        self.line(".El");
    }

    /// A term that is an option, in all its spellings, or an argument.
    pub fn option(&mut self, spellings: &[Word]) {
        let text: Vec<String> = spellings.iter().map(Word::text).collect();
        self.line(&format!(".It {}", text.join(" , ")));
    }

    /// A term that is typed as it is.
    pub fn term(&mut self, text: &str) {
        self.line(&format!(".It Ic {}", argument(text)));
    }

    /// References to other pages.
    pub fn see_also(&mut self, pages: &[(String, u8)]) {
        self.section("SEE ALSO");
        let mut pages = pages.to_vec();
        pages.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        for (n, (name, section)) in pages.iter().enumerate() {
            let comma = if n + 1 < pages.len() { " ," } else { "" };
            self.line(&format!(".Xr {} {section}{comma}", argument(name)));
        }
    }
}

/// A word of a command line.
#[derive(Clone, Debug)]
pub struct Word {
    /// `-o`, `--option`, or nothing for an argument.
    pub flag: String,
    /// The name of its value, if it takes one.
    pub value: Option<String>,
    /// It may be left out.
    pub optional: bool,
    /// It may be repeated.
    pub many: bool,
}

impl Word {
    fn text(&self) -> String {
        let mut parts = Vec::new();
        if self.optional {
            parts.push("Op".to_owned());
        }
        match self.flag.strip_prefix('-') {
            // mdoc puts the first dash there.
            Some(rest) => parts.push(format!("Fl {}", rest.replace('-', "\\-"))),
            None if !self.flag.is_empty() => parts.push(format!("Cm {}", argument(&self.flag))),
            None => {}
        }
        if let Some(value) = &self.value {
            parts.push(format!("Ar {}", argument(&value.to_lowercase().replace('_', "-"))));
        }
        if self.many {
            parts.push("...".to_owned());
        }
        parts.join(" ")
    }
}

/// The sentences of a text, each with its full stop. One begins with a capital letter, a quote or a bracket.
fn sentences(text: &str) -> Vec<&str> {
    let mut begin = 0;
    let ends = text.match_indices(". ").map(|(at, _)| at + 1).filter(|end| {
        let next = text[end + 1..].chars().next();
        next.is_some_and(|c| c.is_uppercase() || c == '`' || c == '[') && !text[..*end].ends_with("..")
    });
    let mut sentences = Vec::new();
    for end in ends {
        sentences.push(&text[begin..end]);
        begin = end + 1;
    }
    sentences.push(&text[begin..]);
    sentences
}

/// The day on which the pages are made; `$SOURCE_DATE_EPOCH` names another, for packages that are to be the same
/// whenever they are built.
fn date() -> String {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let days = given.unwrap_or_else(crate::config::now).div_euclid(86400);
    // Civil date from days since 1970, with years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    const MONTHS: [&str; 12] = [
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
        "January",
        "February",
    ];
    let year = year_of_era + era * 400 + i64::from(month >= 10);
    format!("{} {day}, {year}", MONTHS[month as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_look_like_macros_or_requests_are_none() {
        let mut page = Page::new("x", 8, "a test.");
        page.section("DESCRIPTION");
        page.say(".rc is a name. `Fl` too \\n. End");
        page.option(&[Word { flag: "--dry-run".into(), value: Some("NO".into()), optional: false, many: false }]);
        let text = page.finish();
        assert!(text.contains("\n.Nd a test\n"), "{text}");
        assert!(text.contains("\n\\&.rc is a name.\n`Fl` too \\en.\nEnd\n"), "{text}");
        assert!(text.contains("\n.It Fl \\-dry\\-run Ar \\&no\n"), "{text}");
    }
}
