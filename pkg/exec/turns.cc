#include "pkg/exec/turns.h"

#include <utility>

namespace bim::exec {

std::unique_ptr<Turns::Turn> Turns::Take() {
  {
    std::lock_guard lock(mutex_);
    if (taken_ >= limit_ || !waiting_.empty()) return nullptr;
    ++taken_;
  }
  return std::make_unique<Turn>(shared_from_this());
}

uint64_t Turns::Ask(Begin begin, size_t max_waiting) {
  std::unique_lock lock(mutex_);
  const uint64_t ticket = ++last_ticket_;
  // A turn may be free and about to go to one who waits: that one is first.
  const bool must_wait = taken_ >= limit_ || !waiting_.empty();
  if (must_wait && waiting_.size() >= max_waiting) {
    lock.unlock();
    begin(nullptr);
    return ticket;
  }
  waiting_.emplace(ticket, std::move(begin));
  lock.unlock();
  BeginNext();
  return ticket;
}

void Turns::Withdraw(uint64_t ticket) {
  // Destroyed outside the lock: it may own something that asks or gives.
  std::map<uint64_t, Begin>::node_type withdrawn;
  std::lock_guard lock(mutex_);
  withdrawn = waiting_.extract(ticket);
}

size_t Turns::taken() {
  std::lock_guard lock(mutex_);
  return taken_;
}

void Turns::SetLimit(size_t limit) {
  {
    std::lock_guard lock(mutex_);
    limit_ = limit;
  }
  BeginNext();
}

void Turns::Give() {
  {
    std::lock_guard lock(mutex_);
    --taken_;
  }
  BeginNext();
}

// One thread at a time, so that turns begin in order, and so that a row of
// turns that are dropped in their `begin` is a loop here and no recursion.
void Turns::BeginNext() {
  std::unique_lock lock(mutex_);
  if (giving_) return;  // that thread looks again
  giving_ = true;
  while (taken_ < limit_ && !waiting_.empty()) {
    ++taken_;
    Begin begin = std::move(waiting_.begin()->second);
    waiting_.erase(waiting_.begin());
    lock.unlock();
    begin(std::make_unique<Turn>(shared_from_this()));
    begin = nullptr;  // what it holds is let go outside the lock
    lock.lock();
  }
  giving_ = false;
}

}  // namespace bim::exec
