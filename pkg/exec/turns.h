// A bounded number of turns, given out in the order they were asked for,
// without blocking a thread: for those who wait on the event loop.
//
// Thread-safety: all functions from any thread. The Turns live until the last
// turn was given back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

namespace bim::exec {

class Turns : public std::enable_shared_from_this<Turns> {
 public:
  // Held while the turn lasts; destroying it gives the turn to the next.
  class Turn {
   public:
    explicit Turn(std::shared_ptr<Turns> turns) : turns_(std::move(turns)) {}
    ~Turn() { turns_->Give(); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    const std::shared_ptr<Turns> turns_;
  };
  using Begin = std::function<void(std::unique_ptr<Turn>)>;

  static std::shared_ptr<Turns> Make(size_t limit) {
    return std::shared_ptr<Turns>(new Turns(limit));
  }

  // A turn now, or nullptr when none is free or others wait for it. For who
  // would not wait.
  std::unique_ptr<Turn> Take();
  // Calls `begin` once: with a turn, on this or some other thread that asks,
  // gives a turn back or sets the limit, perhaps after Ask has returned though
  // one was free; or at once with nullptr when `max_waiting` wait already.
  // `begin` must not block and must tolerate being called when nobody is
  // interested any more (it just drops the turn). Returns a ticket for
  // Withdraw.
  uint64_t Ask(Begin begin, size_t max_waiting = 1024);
  // Who asked does not wait any more: its `begin` is dropped, uncalled, and no
  // longer counts as waiting. Nothing happens when it has been called, or is
  // being called.
  void Withdraw(uint64_t ticket);
  // How many have a turn now.
  size_t taken();
  // More may begin at once; those that have a turn keep it.
  void SetLimit(size_t limit);

 private:
  explicit Turns(size_t limit) : limit_(limit) {}
  void Give();
  void BeginNext();

  std::mutex mutex_;
  size_t limit_;
  size_t taken_ = 0;
  uint64_t last_ticket_ = 0;
  std::map<uint64_t, Begin> waiting_;  // in the order they asked
  bool giving_ = false;                // some thread is in BeginNext
};

}  // namespace bim::exec
