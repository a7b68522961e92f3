// A stream of answers that is pulled: the next message is made when the last
// one has left and a wake-up says that there may be news. So a slow reader
// costs one message, whatever happens meanwhile.
//
// This is the bridge between wake-ups on any thread and gRPC's reactions. What
// keeps it right:
// - Everything that is called on the reactor (StartWrite, Finish) is called
//   under mutex_, and nothing after Finish.
// - The object owns itself (self_) until OnDone; whatever is posted to the loop
//   holds a reference of its own, finds finished_ set and does nothing.
// - A wake-up only posts to the loop. The subscription ends in OnDone, without
//   mutex_, while self_ still holds the object.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pkg/api/grpc_status.h"
#include "pkg/base/status.h"
#include "pkg/exec/event_loop.h"
#include "pkg/manager/manager.h"

namespace bim::api {

// A stream that the server can end.
class OpenStream {
 public:
  virtual ~OpenStream() = default;
  // Ends the stream with `status` as soon as the write in flight is done.
  virtual void End(const base::Status& status) = 0;
};

// The open streams of a server: at most `max`, none once ended.
// Thread-safety: all functions from any thread.
class StreamSet {
 public:
  explicit StreamSet(size_t max) : max_(max) {}
  // RESOURCE_EXHAUSTED when there are `max`; after EndAll its status.
  base::Status Add(const std::shared_ptr<OpenStream>& stream) {
    std::lock_guard lock(mutex_);
    if (ended_.has_value()) return *ended_;
    if (streams_.size() >= max_) {
      return base::ResourceExhaustedError("too many open streams: at most " +
                                          std::to_string(max_) +
                                          ", end one or try again later");
    }
    streams_.emplace(stream.get(), stream);
    return base::OkStatus();
  }
  void Remove(OpenStream* stream) {
    std::lock_guard lock(mutex_);
    streams_.erase(stream);
  }
  // Ends all streams and refuses further ones.
  void EndAll(const base::Status& status) {
    std::vector<std::shared_ptr<OpenStream>> open;
    {
      std::lock_guard lock(mutex_);
      ended_ = status;
      for (const auto& [key, weak] : streams_) {
        if (auto stream = weak.lock()) open.push_back(std::move(stream));
      }
    }
    for (const auto& stream : open) stream->End(status);
  }
  size_t size() {
    std::lock_guard lock(mutex_);
    return streams_.size();
  }

 private:
  const size_t max_;
  std::mutex mutex_;
  std::optional<base::Status> ended_;
  std::unordered_map<OpenStream*, std::weak_ptr<OpenStream>> streams_;
};

// What a producer did when asked for the next message.
struct Produced {
  enum class Kind {
    kNothing,  // no news: ask again after a wake-up
    kMessage,  // the message was filled
    kLast,     // the message was filled; the stream ends OK after it
    kEnd,      // the stream ends now with `status`
  };
  Kind kind = Kind::kNothing;
  base::Status status = base::OkStatus();
};

template <typename Message>
class PullStream final
    : public grpc::ServerWriteReactor<Message>,
      public OpenStream,
      public std::enable_shared_from_this<PullStream<Message>> {
 public:
  // Called under the stream's lock, one call at a time, on any thread; must
  // not block. Not called any more once the stream has ended.
  using Producer = std::function<Produced(Message*)>;
  using Subscribe = std::function<std::unique_ptr<manager::Subscription>(
      std::function<void()> wake)>;

  // The reactor to return from the service's method. `interval`: the least
  // time between two messages, 0 for none. `streams` and `loop` outlive the
  // reactor; `producer` may be destroyed later than that, unused.
  static grpc::ServerWriteReactor<Message>* Start(
      StreamSet& streams, exec::EventLoop& loop,
      std::chrono::milliseconds interval, const Subscribe& subscribe,
      Producer producer) {
    auto stream = std::make_shared<PullStream>(streams, loop, interval,
                                               std::move(producer));
    stream->self_ = stream;
    if (base::Status status = streams.Add(stream); !status.ok()) {
      stream->End(status);
      return stream.get();
    }
    // Before the first message is made, so that no news is missed.
    stream->subscription_ =
        subscribe([weak = std::weak_ptr<PullStream>(stream)] {
          if (auto woken = weak.lock()) woken->Schedule();
        });
    stream->Pump();
    return stream.get();
  }

  PullStream(StreamSet& streams, exec::EventLoop& loop,
             std::chrono::milliseconds interval, Producer producer)
      : streams_(streams),
        loop_(loop),
        interval_(interval),
        producer_(std::move(producer)),
        timer_(loop.context()) {}

  void End(const base::Status& status) override {
    std::lock_guard lock(mutex_);
    if (writing_) {
      if (!last_.has_value()) last_ = status;
    } else {
      FinishLocked(status);
    }
  }

 private:
  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      if (!ok) return FinishLocked(base::CancelledError("the caller is gone"));
      if (last_.has_value()) return FinishLocked(*last_);
    }
    if (interval_.count() == 0) {
      Pump();
    } else {
      Schedule();
    }
  }

  void OnCancel() override {
    std::lock_guard lock(mutex_);
    FinishLocked(base::CancelledError("cancelled"));
  }

  void OnDone() override {
    subscription_.reset();
    streams_.Remove(this);
    const std::shared_ptr<PullStream> self = std::move(self_);
  }

  void FinishLocked(const base::Status& status) {
    if (std::exchange(finished_, true)) return;
    this->Finish(ToGrpc(status));
  }

  void Pump() {
    std::lock_guard lock(mutex_);
    if (finished_ || writing_) return;
    pumped_ = std::chrono::steady_clock::now();
    Produced produced = producer_(&message_);
    switch (produced.kind) {
      case Produced::Kind::kNothing:
        return;
      case Produced::Kind::kEnd:
        return FinishLocked(produced.status);
      case Produced::Kind::kLast:
        last_ = base::OkStatus();
        break;
      case Produced::Kind::kMessage:
        break;
    }
    writing_ = true;
    this->StartWrite(&message_);
  }

  // Has Pump called on the loop, once for any number of calls until then.
  void Schedule() {
    if (scheduled_.exchange(true)) return;
    loop_.Post([self = this->shared_from_this()] { self->OnLoop(); });
  }

  void OnLoop() {
    std::chrono::steady_clock::time_point due;
    {
      std::lock_guard lock(mutex_);
      due = pumped_ + interval_;
    }
    if (std::chrono::steady_clock::now() >= due) return PumpScheduled();
    timer_.expires_at(due);
    timer_.async_wait([self = this->shared_from_this()](auto /*error*/) {
      self->PumpScheduled();
    });
  }

  void PumpScheduled() {
    scheduled_ = false;  // first: news from here on schedule again
    Pump();
  }

  StreamSet& streams_;
  exec::EventLoop& loop_;
  const std::chrono::milliseconds interval_;
  std::shared_ptr<PullStream> self_;
  std::unique_ptr<manager::Subscription> subscription_;
  std::atomic<bool> scheduled_{false};

  std::mutex mutex_;
  const Producer producer_;
  Message message_;  // not touched while writing_
  bool writing_ = false;
  bool finished_ = false;
  std::optional<base::Status> last_;  // what to finish with after the write
  std::chrono::steady_clock::time_point pumped_;

  boost::asio::steady_timer timer_;  // on the loop's thread only
};

// A stream that ends at once, for requests that are refused.
template <typename Message>
class RefusedStream final : public grpc::ServerWriteReactor<Message> {
 public:
  explicit RefusedStream(const base::Status& status) {
    this->Finish(ToGrpc(status));
  }
  void OnDone() override { delete this; }
};

}  // namespace bim::api
