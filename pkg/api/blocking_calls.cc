#include "pkg/api/blocking_calls.h"

#include <string>
#include <vector>

#include "pkg/api/grpc_status.h"

namespace bim::api {
namespace {

base::Status Stopping() {
  return base::UnavailableError(
      "the daemon is stopping: the request may not have been carried out");
}

}  // namespace

BlockingCalls::BlockingCalls(exec::WorkerPool& pool, size_t max)
    : pool_(pool), max_(max) {}

BlockingCalls::Call::~Call() {
  Answer(Stopping(), nullptr);
  std::lock_guard lock(open_->mutex);
  open_->calls.erase(this);
  open_->changed.notify_all();
}

void BlockingCalls::Call::Answer(const base::Status& status,
                                 const std::function<void()>& fill) {
  std::lock_guard lock(mutex_);
  if (reactor_ == nullptr) return;
  if (status.ok() && fill) fill();
  std::exchange(reactor_, nullptr)->Finish(ToGrpc(status));
}

std::shared_ptr<BlockingCalls::Call> BlockingCalls::Admit(
    grpc::ServerUnaryReactor* reactor) {
  base::Status refused;
  {
    std::lock_guard lock(open_->mutex);
    if (open_->closed) {
      refused = Stopping();
    } else if (open_->calls.size() >= max_) {
      refused = base::ResourceExhaustedError(
          "too many calls at once: at most " + std::to_string(max_) +
          ", try again later");
    } else {
      auto call = std::make_shared<Call>(open_, reactor);
      open_->calls.emplace(call.get(), call);
      return call;
    }
  }
  reactor->Finish(ToGrpc(refused));
  return nullptr;
}

void BlockingCalls::Close(std::chrono::steady_clock::time_point deadline) {
  std::vector<std::shared_ptr<Call>> left;
  {
    std::unique_lock lock(open_->mutex);
    open_->closed = true;
    open_->changed.wait_until(lock, deadline,
                              [this] { return open_->calls.empty(); });
    for (const auto& [key, weak] : open_->calls) {
      if (auto call = weak.lock()) left.push_back(std::move(call));
    }
  }
  for (const auto& call : left) call->Answer(Stopping(), nullptr);
}

}  // namespace bim::api
