//! How a partition's thread deals with the group's other members: hears and sends messages,
//! answers reads by rounds of the group, changes the membership, hands out and fetches states.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use raft::eraftpb::{Message, MessageType};
use tokio::sync::oneshot;

use super::Writer;
use crate::{
    codec::Reader,
    embedded::{
        member::MemberError,
        membership::{self, Step},
        pull::{Offer, PullError},
        reply::{Refusal, ReplyTo},
    },
    error::chain,
    state::Image,
    store::StoreError,
    wal::{Ticket, WalError, frame::GroupId},
    wire::put_u64s,
};

/// What a partition's thread is told beside requests. Never waits behind them.
#[derive(Debug)]
pub(crate) enum Control {
    /// Messages of other members, each with the sender's life.
    Messages(Vec<(GroupId, Message)>),
    /// Answers once everything is applied that was acknowledged anywhere before this was asked.
    Read(oneshot::Sender<Result<(), StoreError>>),
    /// Goes one step towards these voters.
    Members(BTreeSet<u64>, ReplyTo<MembersProgress>),
    /// The state as it is now, for another member.
    Offer(u64, oneshot::Sender<Offer>),
    /// A state that was fetched, with the leader's life and message.
    Pulled(GroupId, Result<Box<(Message, Image)>, PullError>),
    /// Has somebody else lead, if this member does.
    HandOver,
    /// What became of a piece whose flush was left to the other thread.
    Logged(Ticket, Result<(), WalError>),
}

/// How far a change of members has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MembersProgress {
    Done,
    /// Ask again; what it waits for.
    Working(String),
    Refused(String),
}

/// What a member knows of its group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) leader: Option<u64>,
    /// This member leads.
    pub(crate) leads: bool,
    /// What is applied here is the latest; nobody needs to be asked.
    pub(crate) knows_latest: bool,
    pub(crate) term: u64,
    pub(crate) voters: Vec<u64>,
    pub(crate) learners: Vec<u64>,
    /// Entries that each other member lacks, known to the leader.
    pub(crate) behind: BTreeMap<u64, u64>,
    /// Members that nothing is heard of, known to the leader.
    pub(crate) silent: BTreeSet<u64>,
}

impl Writer {
    /// Takes in what others say. What follows from it is done by [`Writer::drive`].
    pub(super) fn hear(&mut self, calls: &mut Vec<Control>) {
        for call in calls.drain(..) {
            let heard = match call {
                Control::Messages(messages) => self.messages(messages),
                Control::Read(reply) => {
                    self.reads.add(reply);
                    Ok(())
                }
                Control::Members(target, reply) => {
                    let progress = self.step_members(&target);
                    drop(reply.send(progress));
                    Ok(())
                }
                Control::Offer(member, reply) => {
                    self.offer(member, reply);
                    Ok(())
                }
                Control::Pulled(life, outcome) => self.pulled(life, outcome),
                Control::Logged(ticket, outcome) => {
                    self.logged(ticket, outcome);
                    Ok(())
                }
                Control::HandOver => {
                    if let Some(heir) = self.member.heir().filter(|_| self.member.is_leader()) {
                        self.member.transfer(heir);
                    }
                    Ok(())
                }
            };
            if let Err(error) = heard {
                return self.fail(&error);
            }
        }
        if let Some(reason) = &self.progress.ended {
            self.reads.fail(reason);
        }
    }

    fn messages(&mut self, messages: Vec<(GroupId, Message)>) -> Result<(), MemberError> {
        // Who cannot log must not promise.
        if self.refusal().is_some() {
            return Ok(());
        }
        for (life, message) in messages {
            let index = message.get_snapshot().get_metadata().index;
            let state = message.get_msg_type() == MessageType::MsgSnapshot;
            if state && self.member.commit() < index && self.member.term() <= message.term {
                self.member.hear_of(message.from);
                self.pull(life, message);
            } else {
                self.member.step(life, message)?;
            }
        }
        Ok(())
    }

    /// Fetches the leader's state, in the background.
    fn pull(&mut self, life: GroupId, message: Message) {
        let (Some(runtime), false) = (&self.runtime, self.pulling) else { return };
        tracing::info!(
            partition = self.name,
            from = self.post.call_it(message.from),
            "fetching the state: this member is too far behind to be told entry by entry"
        );
        self.pulling = true;
        let (puller, control) = (self.puller.clone(), self.control.clone());
        runtime.spawn(async move {
            let outcome = puller.pull(message).await.map(Box::new);
            if let Some(control) = control.upgrade() {
                drop(control.send(Control::Pulled(life, outcome)));
            }
        });
    }

    fn pulled(
        &mut self,
        life: GroupId,
        outcome: Result<Box<(Message, Image)>, PullError>,
    ) -> Result<(), MemberError> {
        self.pulling = false;
        match outcome {
            Ok(pulled) if self.refusal().is_none() => {
                let (message, image) = *pulled;
                let index = message.get_snapshot().get_metadata().index;
                tracing::info!(partition = self.name, index, "fetched the state");
                self.member.restore(life, message, image)
            }
            Ok(_) => Ok(()),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    partition = self.name,
                    error,
                    "could not fetch the state; waiting for another offer"
                );
                Ok(())
            }
        }
    }

    fn offer(&mut self, member: u64, reply: oneshot::Sender<Offer>) {
        let (at, conf) = (self.member.applied(), self.member.members().clone());
        let pull = self.member.keep_for(member);
        drop(reply.send(Offer { image: self.state.image(), at, conf, pull }));
    }

    /// Goes one step towards `target`.
    fn step_members(&mut self, target: &BTreeSet<u64>) -> Result<MembersProgress, Refusal> {
        if let Some(reason) = self.refusal() {
            return Err(StoreError::Unavailable { reason, source: None }.into());
        }
        if !self.member.is_leader() {
            return Err(Refusal::NotLeader);
        }
        let step = membership::next(&self.member.view(), target);
        tracing::debug!(partition = self.name, ?step, "members");
        let (proposed, what) = match step {
            Step::Done => match self.member.remember() {
                Ok(true) => return Ok(MembersProgress::Done),
                outcome => (outcome.map(drop), "the members are written down"),
            },
            Step::Refuse(reason) => return Ok(MembersProgress::Refused(reason)),
            Step::Wait(reason) => return Ok(MembersProgress::Working(reason)),
            Step::Learn(new) => (self.member.propose_learners(&new), "new members are taken in"),
            Step::Vote(voters) => (self.member.propose_voters(&voters), "the voters change"),
            Step::Transfer(heir) => {
                self.member.transfer(heir);
                (Ok(()), "another member takes the lead")
            }
        };
        if let Err(error) = proposed {
            return Ok(MembersProgress::Working(format!("trying again: {}", chain(&error))));
        }
        Ok(MembersProgress::Working(what.into()))
    }

    pub(super) fn send(&mut self) {
        let messages = self.member.take_messages();
        if !messages.is_empty() {
            self.post.send(&self.name, self.life, messages);
        }
    }

    /// Lets reads go whose round was answered, and begins the next round.
    pub(super) fn answer_reads(&mut self) {
        for read in self.member.take_reads() {
            let mut reader = Reader::new(&read.request_ctx);
            if (reader.u64(), reader.u64()) == (Some(self.post.member()), Some(self.lot))
                && let Some(number) = reader.u64()
            {
                self.reads.answered(number, read.index);
            }
        }
        self.reads.applied(self.member.applied().index);
        // Whoever came meanwhile.
        if let Some(number) = self.reads.begin() {
            let mut context = Vec::with_capacity(24);
            put_u64s(&mut context, [self.post.member(), self.lot, number]);
            self.member.ask_to_read(context);
        }
    }

    /// Tells callers where the group stands, if that changed.
    pub(super) fn publish(&mut self) {
        let works = self.refusal().is_none();
        let leader = self.member.leader().filter(|_| works);
        let leads = works && self.member.is_leader();
        let knows_latest = self.member.knows_latest();
        let term = self.member.term();
        let conf = self.member.members();
        let same = {
            let known = self.standing.borrow();
            (known.leader, known.leads, known.knows_latest, known.term)
                == (leader, leads, knows_latest, term)
                && known.voters == conf.voters
                && known.learners == conf.learners
        };
        if same {
            return;
        }
        let (voters, learners) = (conf.voters.clone(), conf.learners.clone());
        self.standing.send_modify(|standing| {
            let known = Arc::make_mut(standing);
            (known.leader, known.leads, known.knows_latest) = (leader, leads, knows_latest);
            (known.term, known.voters, known.learners) = (term, voters, learners);
        });
    }

    /// Tells how the other members are, which changes all the time.
    pub(super) fn publish_others(&mut self) {
        if self.member.is_alone() || !self.member.is_leader() {
            return;
        }
        let others = self.member.view().others;
        let behind = others.iter().map(|(id, other)| (*id, other.behind)).collect();
        let silent = others.iter().filter(|(_, other)| !other.alive).map(|(id, _)| *id).collect();
        self.standing.send_if_modified(|standing| {
            if standing.behind == behind && standing.silent == silent {
                return false;
            }
            let known = Arc::make_mut(standing);
            (known.behind, known.silent) = (behind, silent);
            false
        });
    }
}
