//! What a user types at a console on a terminal: bytes for the guest, and commands behind a tilde at the start of a
//! line, as cu(1) and ssh(1) have them.

/// What a user asks for at the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleCommand {
    /// `~.`: leave, which ends the machine.
    Quit,
    /// `~b`: a break on the serial line.
    Break,
    /// `~r`: the reset button.
    Reset,
    /// `~p`: the power button.
    PowerButton,
    /// `~w`: write, whoever does so now.
    TakeOver,
}

/// What `~?` shows.
pub(crate) const HELP: &str = "\r\n\
    Commands, at the start of a line:\r\n\
    \x20 ~.   quit: end the machine\r\n\
    \x20 ~p   press the power button\r\n\
    \x20 ~r   press the reset button\r\n\
    \x20 ~b   send a break\r\n\
    \x20 ~^Z  suspend bhyve-rs\r\n\
    \x20 ~~   send one ~\r\n\
    \x20 ~?   this text\r\n";

/// What it shows who has come to a console.
pub(crate) const ATTACHED_HELP: &str = "\r\n\
    Commands, at the start of a line, behind the escape character (~ if no other was chosen):\r\n\
    \x20 .   leave the console; the machine goes on\r\n\
    \x20 w   write here, in place of whoever does so now\r\n\
    \x20 p   press the power button\r\n\
    \x20 r   press the reset button\r\n\
    \x20 b   send a break\r\n\
    \x20 ^Z  suspend this program\r\n\
    \x20 ?   this text; the escape character itself sends one\r\n";

/// What became of a byte that was typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// Nothing yet.
    Held,
    /// It is for the guest.
    Byte(u8),
    /// The escape character, which was held, and it are for the guest.
    Both(u8, u8),
    /// It ends a command.
    Command(ConsoleCommand),
    /// `~?`
    Help,
    /// `~^Z`
    Suspend,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Nothing was typed since the last end of line.
    LineStart,
    /// The escape character at the start of a line.
    Held,
    /// Within a line.
    Line,
}

/// The state between two bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Escape {
    at: At,
    key: Option<u8>,
    attached: bool,
}

const SUSPEND: u8 = 0x1a;

impl Default for Escape {
    fn default() -> Escape {
        Escape { at: At::LineStart, key: Some(b'~'), attached: false }
    }
}

impl Escape {
    /// For who has come to a console, with an escape character of its own, or none.
    pub(crate) fn attached(key: Option<u8>) -> Escape {
        Escape { key, attached: true, ..Escape::default() }
    }

    /// Takes the next byte.
    pub(crate) fn feed(&mut self, byte: u8) -> Typed {
        let held = self.at == At::Held;
        if self.at == At::LineStart && self.key == Some(byte) {
            self.at = At::Held;
            return Typed::Held;
        }
        self.at = if matches!(byte, b'\r' | b'\n') { At::LineStart } else { At::Line };
        let Some(key) = self.key.filter(|_| held) else { return Typed::Byte(byte) };
        let typed = match byte {
            _ if byte == key => return Typed::Byte(key),
            b'.' => Typed::Command(ConsoleCommand::Quit),
            b'b' => Typed::Command(ConsoleCommand::Break),
            b'r' => Typed::Command(ConsoleCommand::Reset),
            b'p' => Typed::Command(ConsoleCommand::PowerButton),
            b'w' if self.attached => Typed::Command(ConsoleCommand::TakeOver),
            b'?' => Typed::Help,
            SUSPEND => Typed::Suspend,
            _ => return Typed::Both(key, byte),
        };
        // The guest saw nothing of it, so the line is as new.
        self.at = At::LineStart;
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the guest gets, and the commands.
    fn typed(text: &[u8]) -> (Vec<u8>, Vec<Typed>) {
        let (mut escape, mut bytes, mut rest) = (Escape::default(), Vec::new(), Vec::new());
        for &byte in text {
            match escape.feed(byte) {
                Typed::Held => {}
                Typed::Byte(b) => bytes.push(b),
                Typed::Both(key, b) => bytes.extend([key, b]),
                command => rest.push(command),
            }
        }
        (bytes, rest)
    }

    #[test]
    fn each_command_is_known_at_the_start_and_after_either_end_of_line() {
        for (key, command) in [
            (b'.', Typed::Command(ConsoleCommand::Quit)),
            (b'b', Typed::Command(ConsoleCommand::Break)),
            (b'r', Typed::Command(ConsoleCommand::Reset)),
            (b'p', Typed::Command(ConsoleCommand::PowerButton)),
            (b'?', Typed::Help),
            (0x1a, Typed::Suspend),
        ] {
            assert_eq!(typed(&[b'~', key]), (vec![], vec![command]));
            assert_eq!(typed(&[b'a', b'\r', b'~', key, b'z']), (b"a\rz".to_vec(), vec![command]));
            assert_eq!(typed(&[b'\n', b'~', key]), (b"\n".to_vec(), vec![command]));
        }
    }

    #[test]
    fn a_tilde_within_a_line_is_a_tilde() {
        assert_eq!(typed(b"ls ~.\r"), (b"ls ~.\r".to_vec(), vec![]));
        assert_eq!(typed(b" ~."), (b" ~.".to_vec(), vec![]));
    }

    #[test]
    fn two_tildes_send_one_and_do_not_arm_a_third() {
        assert_eq!(typed(b"~~."), (b"~.".to_vec(), vec![]));
        assert_eq!(typed(b"~~~."), (b"~~.".to_vec(), vec![]));
    }

    #[test]
    fn a_tilde_before_an_unknown_key_reaches_the_guest_with_it() {
        assert_eq!(typed(b"~/bin\r"), (b"~/bin\r".to_vec(), vec![]));
        // The end of the line is one, so that the next tilde counts.
        assert_eq!(typed(b"~\r~."), (b"~\r".to_vec(), vec![Typed::Command(ConsoleCommand::Quit)]));
    }

    #[test]
    fn commands_can_follow_one_another_without_an_end_of_line() {
        assert_eq!(typed(b"~?~.").1, [Typed::Help, Typed::Command(ConsoleCommand::Quit)]);
    }

    #[test]
    fn who_has_come_can_choose_the_character_and_take_over() {
        let feed = |mut escape: Escape, text: &[u8]| text.iter().map(|b| escape.feed(*b)).last().unwrap();
        let take = Typed::Command(ConsoleCommand::TakeOver);
        assert_eq!(feed(Escape::attached(Some(b'~')), b"~w"), take);
        assert_eq!(feed(Escape::attached(Some(0x1d)), b"x\r\x1dw"), take);
        assert_eq!(feed(Escape::attached(Some(0x1d)), b"~."), Typed::Byte(b'.'));
        assert_eq!(feed(Escape::attached(None), b"~."), Typed::Byte(b'.'));
        assert_eq!(feed(Escape::default(), b"~w"), Typed::Both(b'~', b'w'));
    }

    #[test]
    fn a_lone_tilde_is_held() {
        let mut escape = Escape::default();
        assert_eq!(escape.feed(b'~'), Typed::Held);
        assert_eq!(escape.at, At::Held);
    }
}
