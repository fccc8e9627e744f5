//! Credentials that end.
//!
//! Whoever runs hostile code holds no token of the configuration: it is lent one for as long as its work lasts. What
//! is lent is random and never stored, only its fingerprint is; dropping the [`Loan`] revokes it at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use gf_digest::InstanceName;
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

use crate::secret::Fingerprint;
use crate::{Denied, Principal, Secret};

/// How every lent credential begins, so that one is known as such when its loan has ended, and others need no look-up.
const PREFIX: &str = "gf-loan-";
/// 256 bits: nobody guesses one.
const RANDOM_BYTES: usize = 32;

/// One loan, from its beginning to its end. Never used twice while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoanId(u64);

impl fmt::Display for LoanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The system gives no random numbers, so nothing that must not be guessed can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

/// A credential that is valid until this is dropped.
#[derive(Debug)]
#[must_use = "what is lent is revoked when its loan is dropped"]
pub struct Loan {
    credential: Secret,
    id: LoanId,
    ledger: Arc<Ledger>,
}

impl Loan {
    /// What the borrower presents.
    #[must_use]
    pub const fn credential(&self) -> &Secret {
        &self.credential
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut loans = self.ledger.write();
        loans.borrowers.remove(&self.credential.fingerprint());
        loans.instances.remove(&self.id);
    }
}

/// All loans that have not ended; as large as their number.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    loans: RwLock<Loans>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Loans {
    borrowers: HashMap<Fingerprint, Borrower>,
    /// Where a [`Principal::Worker`] may read and write.
    instances: HashMap<LoanId, InstanceName>,
}

#[derive(Debug)]
struct Borrower {
    principal: Principal,
    /// When it stands for that no more, in seconds since 1970, though the loan may last longer.
    ends_s: u64,
}

impl Borrower {
    const fn for_good(principal: Principal) -> Self {
        Self { principal, ends_s: u64::MAX }
    }
}

impl Ledger {
    /// Lends a credential for the blobs of one instance.
    pub(crate) fn lend_instance(self: &Arc<Self>, instance: InstanceName) -> Result<Loan, NoRandomness> {
        let loan = self.draw()?;
        let mut loans = self.write();
        loans.borrowers.insert(loan.credential.fingerprint(), Borrower::for_good(Principal::Worker(loan.id)));
        loans.instances.insert(loan.id, instance);
        drop(loans);
        Ok(loan)
    }

    /// Lends a credential of a [`Principal::WorkerHost`].
    pub(crate) fn lend_attachment(self: &Arc<Self>) -> Result<Loan, NoRandomness> {
        self.lend_as(Principal::WorkerHost, u64::MAX)
    }

    /// Lends a credential of this principal, which stands for it until this time.
    pub(crate) fn lend_as(self: &Arc<Self>, principal: Principal, ends_s: u64) -> Result<Loan, NoRandomness> {
        let loan = self.draw()?;
        self.write().borrowers.insert(loan.credential.fingerprint(), Borrower { principal, ends_s });
        Ok(loan)
    }

    /// Whether the text is one of ours by its form, valid or not.
    pub(crate) fn is_lent(credential: &str) -> bool {
        credential.starts_with(PREFIX)
    }

    pub(crate) fn borrower(&self, credential: Fingerprint, now_s: u64) -> Result<Principal, Denied> {
        let loans = self.read();
        let borrower = loans.borrowers.get(&credential).ok_or(Denied::BadCredential)?;
        if now_s < borrower.ends_s { Ok(borrower.principal.clone()) } else { Err(Denied::Expired) }
    }

    /// Whether the loan has not ended, and is for this instance.
    pub(crate) fn is_for(&self, loan: LoanId, instance: &InstanceName) -> bool {
        self.read().instances.get(&loan) == Some(instance)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let loans = self.read();
        loans.borrowers.len().max(loans.instances.len())
    }

    /// A loan that nobody knows yet.
    fn draw(self: &Arc<Self>) -> Result<Loan, NoRandomness> {
        let mut random = [0; RANDOM_BYTES];
        SystemRandom::new().fill(&mut random).map_err(|_| NoRandomness)?;
        let text = random.iter().fold(PREFIX.to_owned(), |text, byte| text + &format!("{byte:02x}"));
        let id = LoanId(self.next.fetch_add(1, Ordering::Relaxed));
        Ok(Loan { credential: Secret::new(text), id, ledger: Arc::clone(self) })
    }

    // Nothing panics under the lock, and a map is whole between two of its calls.
    fn read(&self) -> RwLockReadGuard<'_, Loans> {
        self.loans.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Loans> {
        self.loans.write().unwrap_or_else(PoisonError::into_inner)
    }
}
