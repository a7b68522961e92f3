#include "pkg/api/acceptor.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <future>
#include <utility>

#include "pkg/base/status.h"

namespace bim::api {
namespace {

// Accepted in one turn of the loop, so that a flood does not starve it.
constexpr int kTurn = 16;

bool IsOutOfResources(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS ||
         error == ENOMEM;
}

// Failures of the one connection that was about to be accepted, see accept(2).
bool IsOfTheConnection(int error) {
  return error == EINTR || error == ECONNABORTED || error == EPROTO ||
         error == EPERM || error == ENETDOWN || error == ENOPROTOOPT ||
         error == EHOSTDOWN || error == ENONET || error == EHOSTUNREACH ||
         error == EOPNOTSUPP || error == ENETUNREACH;
}

}  // namespace

// Lives on the loop's thread once started; handlers keep it alive.
struct Acceptor::State : std::enable_shared_from_this<Acceptor::State> {
  struct Listening {
    Listening(boost::asio::io_context& context, int fd)
        : descriptor(context, fd), timer(context) {}
    boost::asio::posix::stream_descriptor descriptor;
    boost::asio::steady_timer timer;
    std::vector<Accepted> accepted;
  };

  void Wait(Listening& listening) {
    listening.descriptor.async_wait(
        boost::asio::posix::stream_descriptor::wait_read,
        [self = shared_from_this(), &listening](auto error) {
          if (self->stopped) return;
          if (error) {
            self->Pause(listening);
          } else {
            self->AcceptSome(listening);
          }
        });
  }

  void Pause(Listening& listening) {
    listening.timer.expires_after(options.pause);
    listening.timer.async_wait(
        [self = shared_from_this(), &listening](auto /*error*/) {
          if (!self->stopped) self->AcceptSome(listening);
        });
  }

  void AcceptSome(Listening& listening) {
    for (int i = 0; i < kTurn; ++i) {
      if (IsFull(listening)) return Pause(listening);
      base::UniqueFd fd(::accept4(listening.descriptor.native_handle(), nullptr,
                                  nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!fd) {
        const int error = errno;
        if (error == EAGAIN || error == EWOULDBLOCK) break;
        if (IsOfTheConnection(error) && !IsOutOfResources(error)) continue;
        return Pause(listening);
      }
      struct stat info {};
      if (::fstat(fd.get(), &info) != 0) continue;
      listening.accepted.push_back({fd.get(), info.st_ino});
      const int on = 1;  // fails on a unix socket, which does not delay
      (void)::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      on_connection(std::move(fd));
    }
    Wait(listening);
  }

  bool IsFull(Listening& listening) {
    std::vector<Accepted>& accepted = listening.accepted;
    if (accepted.size() < options.max_connections) return false;
    std::erase_if(accepted,
                  [](const Accepted& socket) { return !socket.IsSame(); });
    return accepted.size() >= options.max_connections;
  }

  Options options;
  OnConnection on_connection;
  std::vector<std::unique_ptr<Listening>> listenings;
  bool stopped = false;
};

Acceptor::Acceptor(exec::EventLoop& loop, std::vector<base::UniqueFd> listeners,
                   OnConnection on_connection, Options options)
    : loop_(loop), state_(std::make_shared<State>()) {
  state_->options = options;
  state_->on_connection = std::move(on_connection);
  for (base::UniqueFd& fd : listeners) {
    const int flags = ::fcntl(fd.get(), F_GETFL);
    BIM_CHECK(flags >= 0);
    (void)::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK);
    state_->listenings.push_back(
        std::make_unique<State::Listening>(loop.context(), fd.Release()));
  }
  loop_.Post([state = state_] {
    if (state->stopped) return;
    for (auto& listening : state->listenings) state->Wait(*listening);
  });
}

Acceptor::~Acceptor() { (void)Stop(); }

std::vector<base::UniqueFd> Acceptor::Stop() {
  if (state_ == nullptr) return {};
  BIM_CHECK(!loop_.InLoop());
  std::promise<std::vector<base::UniqueFd>> stopped;
  std::future<std::vector<base::UniqueFd>> result = stopped.get_future();
  loop_.Post([state = std::exchange(state_, nullptr), &stopped,
              &accepted = accepted_] {
    state->stopped = true;
    state->on_connection = nullptr;
    std::vector<base::UniqueFd> listeners;
    for (auto& listening : state->listenings) {
      listeners.emplace_back(listening->descriptor.release());
      listening->timer.cancel();
      accepted.insert(accepted.end(), listening->accepted.begin(),
                      listening->accepted.end());
    }
    stopped.set_value(std::move(listeners));
  });
  return result.get();
}

bool Acceptor::Accepted::IsSame() const {
  struct stat info {};
  return ::fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode) &&
         info.st_ino == inode;
}

void Acceptor::SendGoAway(uint32_t last_stream) {
  // Length 8, type 7, no flags, of stream 0; the last stream; no error.
  unsigned char frame[] = {0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  for (int i = 0; i < 4; ++i) {
    frame[9 + i] = static_cast<unsigned char>(last_stream >> (24 - 8 * i));
  }
  for (const Accepted& socket : accepted_) {
    if (!socket.IsSame()) continue;
    (void)!::send(socket.fd, frame, sizeof(frame), MSG_DONTWAIT | MSG_NOSIGNAL);
  }
}

void Acceptor::EndAccepted() {
  for (const Accepted& socket : accepted_) {
    if (socket.IsSame()) (void)::shutdown(socket.fd, SHUT_RDWR);
  }
}

}  // namespace bim::api
