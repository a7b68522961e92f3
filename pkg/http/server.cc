#include "pkg/http/server.h"

#include <sys/socket.h>

#include <cerrno>

#include "pkg/http/session.h"

namespace bim::http {
namespace {

using boost::system::error_code;
constexpr std::chrono::milliseconds kAcceptPause{100};

class ServerImpl : public Server {
 public:
  explicit ServerImpl(std::shared_ptr<ServerCore> core)
      : core_(std::move(core)) {}
  ~ServerImpl() override {
    BIM_CHECK(!core_->loop.InLoop());
    core_->Stop();
  }

 private:
  const std::shared_ptr<ServerCore> core_;
};

}  // namespace

std::string_view Request::Field(std::string_view name) const {
  std::string_view found;
  bool once = false;
  for (const auto& [key, value] : fields) {
    if (key != name) continue;
    if (once) return {};
    once = true;
    found = value;
  }
  return found;
}

base::Status ServerCore::Listen(base::UniqueFd listener) {
  int listening = 0;
  socklen_t size = sizeof(listening);
  if (getsockopt(listener.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening,
                 &size) != 0 ||
      listening == 0) {
    return base::InvalidArgumentError(
        "the HTTP server needs a listening stream socket");
  }
  sockaddr_storage address{};
  size = sizeof(address);
  if (getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address),
                  &size) != 0)
    return base::ErrnoError(errno, "asking the address of the HTTP listener");
  acceptor_.emplace(loop.context());
  pause_.emplace(loop.context());
  error_code error;
  acceptor_->assign(Protocol(address.ss_family, 0), listener.get(), error);
  if (error) {
    return base::ErrnoError(error.value(),
                            "giving the HTTP listener to the loop");
  }
  (void)listener.Release();
  acceptor_->non_blocking(true, error);
  loop.Post([self = shared_from_this()] { self->Accept(); });
  return base::OkStatus();
}

void ServerCore::Accept() {
  if (!acceptor_ || accepting_ || (Full() && waiting_.empty())) return;
  accepting_ = true;
  // Not async_accept: who may be accepted, and in whose place, is known only
  // when somebody comes.
  acceptor_->async_wait(Acceptor::wait_read,
                        [self = shared_from_this()](error_code error) {
                          self->OnAcceptable(error);
                        });
}

void ServerCore::OnAcceptable(error_code error) {
  if (!acceptor_) return;
  if (!error && Full() && !MakeRoom()) {
    if (waiting_.empty()) {
      accepting_ = false;  // until one waits again, or is gone
    } else {
      Pause();  // what they sent is being read
    }
    return;
  }
  Protocol::socket socket(loop.context());
  if (!error) acceptor_->accept(socket, error);
  if (error && error != boost::asio::error::would_block &&
      error != boost::asio::error::connection_aborted) {
    // Out of descriptors or memory: the listener stays readable, so look again
    // only after a pause.
    Pause();
    return;
  }
  if (!error) {
    auto session =
        std::make_shared<Session>(shared_from_this(), std::move(socket));
    sessions_.insert(session);
    session->Start();
  }
  accepting_ = false;
  Accept();
}

bool ServerCore::MakeRoom() {
  // Who never asked anything goes before who may be about to ask again.
  for (const bool had_request : {false, true}) {
    for (Session* session : waiting_) {
      if (session->had_request != had_request || session->HasUnread()) continue;
      session->Close();
      return !Full();
    }
  }
  return false;
}

void ServerCore::Pause() {
  pause_->expires_after(kAcceptPause);
  pause_->async_wait([self = shared_from_this()](error_code) {
    self->accepting_ = false;
    self->Accept();
  });
}

void ServerCore::Wait(Session& session) {
  session.place = waiting_.insert(waiting_.end(), &session);
  if (Full()) Accept();
}

void ServerCore::Unwait(Session& session) {
  if (!session.place) return;
  waiting_.erase(*session.place);
  session.place.reset();
  session.had_request = true;
}

void ServerCore::Remove(const std::shared_ptr<Session>& session) {
  if (sessions_.erase(session) > 0) Accept();
}

bool ServerCore::Begin() {
  std::lock_guard lock(mutex_);
  if (stopping_) return false;
  ++running_;
  return true;
}

void ServerCore::End() {
  std::lock_guard lock(mutex_);
  --running_;
  changed_.notify_all();
}

bool ServerCore::stopping() {
  std::lock_guard lock(mutex_);
  return stopping_;
}

void ServerCore::SessionBorn() {
  std::lock_guard lock(mutex_);
  ++alive_;
}

void ServerCore::SessionGone() {
  std::lock_guard lock(mutex_);
  --alive_;
  changed_.notify_all();
}

void ServerCore::Discard(std::shared_ptr<void> thing) {
  {
    std::lock_guard lock(mutex_);
    discarded_.push_back(std::move(thing));
  }
  Submit([this] { DestroyDiscarded(); });
}

void ServerCore::DestroyDiscarded() {
  std::vector<std::shared_ptr<void>> discarded;
  std::lock_guard lock(mutex_);
  discarded.swap(discarded_);  // destroyed behind the lock
}

void ServerCore::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;  // work that has not begun never will
  }
  // Accept no more, and let no client hold up what runs.
  loop.Post([self = shared_from_this()] {
    self->acceptor_.reset();
    self->pause_.reset();
    const auto sessions = self->sessions_;
    for (const auto& session : sessions) session->Close();
  });
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return running_ == 0; });
  }
  // What ran has posted its result before; nobody uses a descriptor now.
  loop.Post([self = shared_from_this()] { self->sessions_.clear(); });
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return alive_ == 0; });
  }
  DestroyDiscarded();
  handler_ = nullptr;
}

base::Result<std::unique_ptr<Server>> Server::Start(exec::EventLoop& loop,
                                                    exec::WorkerPool& pool,
                                                    base::UniqueFd listener,
                                                    Handler handler,
                                                    Options options) {
  if (options.max_connections == 0)
    return base::InvalidArgumentError("max_connections must be at least 1");
  auto core =
      std::make_shared<ServerCore>(loop, pool, std::move(handler), options);
  BIM_RETURN_IF_ERROR(core->Listen(std::move(listener)));
  return std::unique_ptr<Server>(std::make_unique<ServerImpl>(std::move(core)));
}

}  // namespace bim::http
