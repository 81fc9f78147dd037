//! What drivers rely on in this chip beyond its data sheet's first reading, each with a stall behind it. A test breaks
//! one at a time and sees a driver stall; in the product nothing is ever broken, and the checks compile to nothing.

/// The rules, and the list of them for tests.
macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $rule:ident,)+) => {
        /// A rule that a test can break. De is FreeBSD's and OpenBSD's de(4).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Rule {
            $($(#[doc = $doc])+ $rule,)+
        }

        #[cfg(test)]
        pub(super) const RULES: &[Rule] = &[$(Rule::$rule),+];
    };
}

rules! {
    /// INTA# follows a write of CSR7, too: de masks TI while its ring has room, and unmasks it when it may have come.
    UnmaskedStatusInterrupts,
    /// Only what CSR7 lets through counts for CSR5's summaries and INTA#: de masks what it does not want to hear.
    MaskedStatusIsSilent,
    /// A setup frame is taken while the receiver is stopped: de stops it first, and starts it when the frame is done.
    SetupWhileStopped,
    /// A setup frame is one also with FS and LS, which de sets.
    SetupWithSegmentBits,
    /// A setup frame interrupts if asked to: there, and nowhere else, de starts the receiver again.
    SetupInterrupts,
    /// A setup frame's descriptor comes back.
    SetupIsReturned,
    /// A write of CSR1 makes a suspended transmitter look again.
    PollDemandIsHeard,
    /// The transmitter looks when ST is set, as after a reset.
    StartPolls,
    /// A receiver that found no descriptor looks at the same one again by itself: de never writes CSR2.
    ReceiverLooksAgain,
    /// RPS comes as soon as SR is cleared: de waits for it in a loop.
    StopIsTold,
    /// SR set again goes on where the receiver was, and not at CSR3.
    RestartGoesOn,
    /// CSR8 counts missed frames, and FIFO overflows never: at those de drops what it has received.
    NoFifoOverflows,
    /// The length of a received frame counts the FCS.
    LengthCountsFcs,
    /// A good frame has FS and LS, and no ES.
    GoodFramesHaveNoError,
    /// The descriptor with the end-of-ring bit is followed by the first one.
    RingsEnd,
    /// Both buffers of a descriptor are data.
    SecondBufferCounts,
    /// A frame that went out has neither NC nor EC: de takes them for a medium without a cable.
    SentFramesHaveCarrier,
    /// A short frame is padded: de's media probe has 17 bytes.
    ShortFramesArePadded,
    /// A transmitter that found no descriptor is suspended, not stopped.
    NoBufferSuspends,
    /// A software reset is over at once: de writes CSR3 and CSR4 before CSR0 again.
    ResetIsShort,
    /// Registers are eight bytes apart, in the memory BAR as well.
    RegistersInMemory,
    /// Setup frames with hash bits count: de hashes beyond 14 groups.
    HashesCount,
    /// CSR6.PM lets broadcasts in: with IFF_ALLMULTI de does not list them.
    AllMulticastIsBroadcast,
    /// Groups in a list of perfect addresses are let in: without them no IPv6 neighbour is found.
    GroupsInTheList,
    /// De(4) is told of one received frame at a time, or OpenBSD's leaves answers in its queue.
    FramesComeOneByOne,
    /// What de(4) has sent comes back when its ring is full, or OpenBSD's leaves packets in its queue.
    SentFramesComeLate,
}

#[cfg(test)]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

impl Rule {
    /// Breaks a rule, in the present thread, or none.
    #[cfg(test)]
    pub(super) fn set_broken(rule: Option<Rule>) {
        BROKEN.set(rule);
    }

    /// Whether it holds.
    #[cfg(test)]
    pub(super) fn holds(self) -> bool {
        BROKEN.get() != Some(self)
    }

    /// Whether it holds.
    #[cfg(not(test))]
    #[inline(always)]
    pub(super) const fn holds(self) -> bool {
        true
    }
}
