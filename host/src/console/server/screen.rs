//! The text screen as a console: what has changed goes to each client as control sequences for a terminal of its size.
//!
//! Who comes gets the whole screen, and who falls behind gets what it shows when it has caught up, so there is nothing
//! to replay and nothing to miss.

use std::sync::Arc;
use std::time::{Duration, Instant};

use emu::DeviceCell;

use super::client::Client;
use crate::keyboard::Typist;

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(40);

pub(super) struct Screen {
    adapter: Arc<DeviceCell>,
    typist: Arc<Typist>,
    next: Instant,
}

impl Screen {
    pub(super) fn new(adapter: Arc<DeviceCell>, typist: Arc<Typist>) -> Screen {
        Screen { adapter, typist, next: Instant::now() }
    }

    pub(super) fn next_look(&self) -> Instant {
        self.next
    }

    /// The next look is due.
    pub(super) fn at_once(&mut self) {
        self.next = Instant::now();
    }

    /// Shows all who can take it what has changed, if it is time.
    pub(super) fn look(&mut self, clients: &mut [Client]) {
        let now = Instant::now();
        if clients.is_empty() || now < self.next {
            return;
        }
        self.next = now + LOOK;
        let text = self.adapter.with(|device| device.display().and_then(|display| display.text())).flatten();
        for client in clients.iter_mut().filter(|client| client.has_room()) {
            let size = client.size;
            let shown = match &text {
                Some(text) => client.canvas.show(text, size),
                None => client.canvas.say(crate::screen::NO_TEXT),
            };
            client.show(shown.as_bytes());
        }
    }

    /// What was typed at a terminal is typed at the keyboard.
    pub(super) fn press(&self, client: &mut Client, bytes: &[u8]) {
        // Who types on while the guest does not read loses what is too much.
        self.typist.press(&client.decoder.feed(bytes));
    }
}
