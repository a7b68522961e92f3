// Unary calls whose work blocks: done on a worker thread, answered from there.
//
// Bounded: a call over the limit is refused. Every call is answered exactly
// once, also when the pool drops its work, and at the latest by Close: work
// that runs on after that has nobody to answer to, and its result is let go.
// Thread-safety: all functions from any thread, Close on one.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "pkg/base/status.h"
#include "pkg/exec/worker_pool.h"

namespace bim::api {

class BlockingCalls {
 public:
  // `pool` outlives this object.
  BlockingCalls(exec::WorkerPool& pool, size_t max);

  // Runs `work` on the pool and finishes `reactor` with its status and, when
  // OK, its response. RESOURCE_EXHAUSTED over the limit, UNAVAILABLE when
  // closed. `work` must refer to nothing that goes away before the pool has
  // ended.
  template <typename Response>
  void Run(grpc::ServerUnaryReactor* reactor, Response* response,
           std::function<base::Status(Response*)> work) {
    std::shared_ptr<Call> call = Admit(reactor);
    if (call == nullptr) return;
    pool_.Submit([call = std::move(call), response, work = std::move(work)] {
      Response made;
      const base::Status status = work(&made);
      call->Answer(status, [&] { response->Swap(&made); });
    });
  }

  // Refuses further calls, waits until all are answered or `deadline`, then
  // answers the rest with UNAVAILABLE.
  void Close(std::chrono::steady_clock::time_point deadline);

 private:
  class Call;
  // Shared with the calls, which may outlive this object.
  struct Open {
    std::mutex mutex;
    std::condition_variable changed;
    bool closed = false;
    std::unordered_map<Call*, std::weak_ptr<Call>> calls;
  };

  // One call until its work has ended.
  class Call {
   public:
    Call(std::shared_ptr<Open> open, grpc::ServerUnaryReactor* reactor)
        : open_(std::move(open)), reactor_(reactor) {}
    // Answers when nothing else did: the work was dropped.
    ~Call();
    // The first answer counts; `fill` fills the response just before an OK.
    void Answer(const base::Status& status, const std::function<void()>& fill);

   private:
    const std::shared_ptr<Open> open_;
    std::mutex mutex_;
    grpc::ServerUnaryReactor* reactor_;  // null once answered
  };

  // Null when refused; `reactor` is finished then.
  std::shared_ptr<Call> Admit(grpc::ServerUnaryReactor* reactor);

  exec::WorkerPool& pool_;
  const size_t max_;
  const std::shared_ptr<Open> open_ = std::make_shared<Open>();
};

}  // namespace bim::api
