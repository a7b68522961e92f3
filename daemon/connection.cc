#include "daemon/connection.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>

namespace bim::daemon {
namespace {

constexpr char kDefaultSocket[] = "/run/bim/bim.sock";
constexpr char kDefaultTcp[] = "127.0.0.1:9500";
// Of calls that answer at once, without --timeout.
constexpr std::chrono::milliseconds kUnaryTimeout{30'000};
constexpr std::chrono::milliseconds kConnectTimeout{10'000};
constexpr std::chrono::milliseconds kReconnectPause{200};

std::chrono::milliseconds UntilOr1ms(
    std::chrono::steady_clock::time_point deadline) {
  return std::max(std::chrono::milliseconds(1),
                  std::chrono::duration_cast<std::chrono::milliseconds>(
                      deadline - std::chrono::steady_clock::now()));
}

}  // namespace

ExitCode ExitCodeOf(base::Code code) {
  switch (code) {
    case base::Code::kOk:
      return ExitCode::kOk;
    case base::Code::kInvalidArgument:
      return ExitCode::kUsage;
    case base::Code::kNotFound:
      return ExitCode::kNotFound;
    case base::Code::kFailedPrecondition:
    case base::Code::kAlreadyExists:
      return ExitCode::kRefused;
    case base::Code::kDeadlineExceeded:
      return ExitCode::kTimedOut;
    case base::Code::kDataLoss:
      return ExitCode::kImageFailed;
    default:
      return ExitCode::kFailed;
  }
}

std::string DefaultAddress() {
  return access(kDefaultSocket, F_OK) == 0
             ? fmt::format("unix:{}", kDefaultSocket)
             : kDefaultTcp;
}

CommandEnd Connection::Open(const std::string& address,
                            std::optional<Clock::time_point> deadline,
                            std::stop_token stop,
                            std::unique_ptr<Connection>& connection) {
  std::chrono::milliseconds wait = kConnectTimeout;
  if (deadline) wait = std::min(wait, UntilOr1ms(*deadline));
  auto client = api::Client::Connect(address, wait);
  if (!client.ok()) {
    const bool unavailable = client.status().code() == base::Code::kUnavailable;
    return {unavailable ? ExitCode::kUnreachable
                        : ExitCodeOf(client.status().code()),
            client.status().message()};
  }
  connection.reset(
      new Connection(*std::move(client), deadline, std::move(stop)));
  return {};
}

std::chrono::milliseconds Connection::TimeLeft() const {
  return deadline_ ? UntilOr1ms(*deadline_) : kUnaryTimeout;
}

CommandEnd Connection::Explain(const grpc::Status& status) const {
  if (status.ok()) return {};
  const base::Status known = api::FromGrpc(status);
  if (known.code() == base::Code::kCancelled && stop_.stop_requested() &&
      (!deadline_ || Clock::now() < *deadline_)) {
    return {ExitCode::kInterrupted, "interrupted"};
  }
  // UNAVAILABLE is also what a daemon answers that is stopping, or whose disk
  // is away: then the connection stands.
  if (known.code() == base::Code::kUnavailable &&
      client_->channel()->GetState(false) != GRPC_CHANNEL_READY) {
    return {ExitCode::kUnreachable, known.message()};
  }
  if (known.code() == base::Code::kDeadlineExceeded ||
      (known.code() == base::Code::kCancelled && stop_.stop_requested())) {
    return {ExitCode::kTimedOut,
            fmt::format("timed out: the daemon at {} did not answer in time",
                        address())};
  }
  return {ExitCodeOf(known.code()), known.message()};
}

bool Connection::Reconnect(std::chrono::milliseconds wait) {
  const std::string address = client_->address();
  const auto end = Clock::now() + wait;
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  while (!stop_.stop_requested() && Clock::now() < end) {
    // First: a daemon that is stopping still lets us in.
    wake.wait_for(lock, stop_, kReconnectPause, [] { return false; });
    auto client = api::Client::Connect(address, std::chrono::seconds(1));
    if (client.ok()) {
      client_ = *std::move(client);
      return true;
    }
  }
  return false;
}

}  // namespace bim::daemon
