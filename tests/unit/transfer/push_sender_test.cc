#include "pkg/transfer/push_sender.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "pkg/hash/hasher.h"
#include "tests/unit/http/server_fixture.h"

namespace bim::transfer {
namespace {

using http::BodyTaker;
using http::Pattern;
using http::Request;
using http::Response;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;
constexpr std::chrono::seconds kDeadline{10};
const char kAborted[] = "checksumMethod=&checksum=";

struct Part {
  uint64_t begin = 0;
  uint64_t end = 0;
  friend auto operator<=>(const Part&, const Part&) = default;
};

std::optional<Part> ParsePart(std::string_view query) {
  Part part;
  for (const auto& [name, number] :
       {std::pair{"begin=", &part.begin}, std::pair{"&end=", &part.end}}) {
    const size_t at = query.find(name);
    if (at == std::string_view::npos) return std::nullopt;
    const std::string_view text = query.substr(at + std::strlen(name));
    std::from_chars(text.data(), text.data() + text.size(), *number);
  }
  return part;
}

std::string ChecksumOf(std::string_view text) {
  return "\"" +
         hash::HashOf(base::DigestAlgorithm::kSha512,
                      std::as_bytes(std::span(text)))
             .Base64() +
         "\"";
}

// A receiver on our own server; its file is a string.
class PushSender : public testing::Test {
 protected:
  PushSender() {
    auto [listener, port] = http::ListenLocal();
    listener_ = std::move(listener);
    spec_.address = "127.0.0.1:" + std::to_string(port);
    spec_.deadlines.open_retry = milliseconds(5000);
    spec_.deadlines.stall = milliseconds(5000);
    spec_.deadlines.abort = milliseconds(1000);
  }
  ~PushSender() override {
    Release();
    server_.reset();
  }
  // For an on_data_ that blocks.
  void AwaitRelease() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return released_; });
  }
  void Release() {
    std::lock_guard lock(mutex_);
    released_ = true;
    changed_.notify_all();
  }
  void StartServer() {
    auto server = http::Server::Start(
        loop_, pool_, base::UniqueFd(::dup(listener_.get())),
        [this](const Request& request) { return Serve(request); }, {});
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
  }
  // A file of `size` bytes with data in `parts`, which is `content_` then.
  void MakeFile(uint64_t size, const std::vector<Part>& parts) {
    file_ = http::HugeFile(size);
    content_.assign(size, '\0');
    const std::string pattern = Pattern(size);
    for (const auto& [begin, end] : parts) {
      content_.replace(begin, end - begin, pattern, begin, end - begin);
      ASSERT_EQ(::pwrite(file_.get(), pattern.data() + begin, end - begin,
                         static_cast<off_t>(begin)),
                static_cast<ssize_t>(end - begin));
    }
    spec_.file = file_.get();
    spec_.size = size;
  }
  base::Status Run() { return Push(spec_, stop_.get_token()); }
  // Of a failure; `within`: about how long it takes, at most, on a machine that
  // does nothing else.
  void ExpectFailure(base::Code code, const std::string& text,
                     milliseconds within = milliseconds(5000)) {
    const auto begin = steady_clock::now();
    const base::Status status = Run();
    EXPECT_EQ(status.code(), code) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr(text));
    EXPECT_LT(steady_clock::now() - begin, within * 10);
  }
  template <typename Condition>
  bool Await(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kDeadline, condition);
  }

  // What becomes of a request before the receiver sees it.
  std::function<std::optional<Response>(const Request&)> intercept_;
  // Called with each piece of data, unlocked.
  std::function<void(size_t bytes)> on_data_;
  std::string open_answer_ = "false\n";

  std::mutex mutex_;
  std::condition_variable changed_;
  bool released_ = false;
  std::string received_;
  std::vector<std::string> opens_;
  std::vector<std::string> closes_;
  std::vector<Part> writes_;
  std::vector<Part> holes_;
  std::vector<Part> asked_;
  std::atomic<size_t> pieces_{0};
  std::atomic<size_t> broken_{0};  // bodies that did not come whole

  base::UniqueFd file_;
  std::string content_;
  PushSpec spec_;
  std::stop_source stop_;

  base::UniqueFd listener_;
  exec::EventLoop loop_;
  exec::WorkerPool pool_{"test", 16};
  std::unique_ptr<http::Server> server_;

 private:
  class Taker : public BodyTaker {
   public:
    Taker(PushSender& test, const Part& part) : test_(test), part_(part) {}
    ~Taker() override {
      if (!finished_) ++test_.broken_;
    }
    base::Status OnData(std::span<const std::byte> data) override {
      {
        std::lock_guard lock(test_.mutex_);
        ++test_.pieces_;
        test_.changed_.notify_all();
      }
      if (test_.on_data_) test_.on_data_(data.size());
      body_.append(reinterpret_cast<const char*>(data.data()), data.size());
      return base::OkStatus();
    }
    Response Finish(const base::Status& status) override {
      finished_ = status.ok();
      Response response;
      std::lock_guard lock(test_.mutex_);
      if (!status.ok() || body_.size() != part_.end - part_.begin ||
          part_.end > test_.received_.size()) {
        response.status = 400;
        response.body = "wrong length";
        return response;
      }
      test_.received_.replace(part_.begin, body_.size(), body_);
      test_.writes_.push_back(part_);
      test_.changed_.notify_all();
      return response;
    }

   private:
    PushSender& test_;
    const Part part_;
    std::string body_;
    bool finished_ = false;
  };

  Response Serve(const Request& request) {
    if (intercept_) {
      if (std::optional<Response> answer = intercept_(request))
        return *std::move(answer);
    }
    Response response;
    const std::string call = request.method + " " + request.path;
    const std::optional<Part> part = ParsePart(request.query);
    if (call == "POST /v1-ssync/writeData" && part) {
      response.taker = std::make_unique<Taker>(*this, *part);
      return response;
    }
    std::lock_guard lock(mutex_);
    if (call == "GET /v1-ssync/open" && part) {
      opens_.push_back(request.query);
      // What is not sent must not look like zeros.
      if (received_.empty()) received_.assign(part->end, '?');
      response.body = open_answer_;
    } else if (call == "POST /v1-ssync/sendHole" && part &&
               part->end <= received_.size()) {
      holes_.push_back(*part);
      received_.replace(part->begin, part->end - part->begin,
                        part->end - part->begin, '\0');
    } else if (call == "GET /v1-ssync/getChecksum" && part) {
      asked_.push_back(*part);
      const std::string text =
          received_.substr(part->begin, part->end - part->begin);
      response.body =
          text.find('?') == std::string::npos ? ChecksumOf(text) : "null\n";
    } else if (call == "POST /v1-ssync/close") {
      closes_.push_back(request.query);
    } else {
      response.status = 400;
      response.body = "not a request of this protocol";
    }
    changed_.notify_all();
    return response;
  }
};

TEST_F(PushSender, AllBytesArrive) {
  // Data at the begin, in the middle (more than a batch), and in the last,
  // short, sector.
  const uint64_t size = 40 * kMiB + 77;
  const std::vector<Part> data = {{0, 4096},
                                  {8 * kMiB, 13 * kMiB},
                                  {20 * kMiB, 20 * kMiB + 8192},
                                  {40 * kMiB, size}};
  MakeFile(size, data);
  StartServer();
  spec_.sha512_hex = std::string(128, 'a');
  int checks = 0;
  spec_.check = [&] {
    ++checks;
    return base::OkStatus();
  };
  std::vector<uint64_t> told;
  spec_.on_bytes = [&](uint64_t bytes) { told.push_back(bytes); };
  const base::Status status = Run();
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_TRUE(received_ == content_);
  EXPECT_THAT(opens_, ElementsAre("begin=0&end=" + std::to_string(size) +
                                  "&directIO=false"));
  EXPECT_THAT(closes_, ElementsAre("checksumMethod=sha512&checksum=" +
                                   std::string(128, 'a')));
  EXPECT_TRUE(asked_.empty());
  // Each byte once, and holes only as holes.
  std::sort(writes_.begin(), writes_.end());
  std::sort(holes_.begin(), holes_.end());
  EXPECT_THAT(holes_,
              ElementsAre(Part{4096, 8 * kMiB}, Part{13 * kMiB, 20 * kMiB},
                          Part{20 * kMiB + 8192, 40 * kMiB}));
  EXPECT_THAT(writes_,
              ElementsAre(data[0], Part{8 * kMiB, 10 * kMiB},
                          Part{10 * kMiB, 12 * kMiB},
                          Part{12 * kMiB, 13 * kMiB}, data[2], data[3]));
  EXPECT_EQ(checks, 10);
  EXPECT_EQ(told.size(), 9u);
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told.back(), size);
}

TEST_F(PushSender, OneWorkerGoesInOrder) {
  MakeFile(9 * kMiB, {{0, 9 * kMiB}});
  StartServer();
  spec_.workers = 1;
  EXPECT_EQ(Run(), base::OkStatus());
  EXPECT_TRUE(received_ == content_);
  EXPECT_EQ(writes_.size(), 5u);
  EXPECT_TRUE(std::is_sorted(writes_.begin(), writes_.end()));
  EXPECT_THAT(closes_, ElementsAre(kAborted));  // no checksum is known
}

TEST_F(PushSender, HolesAndNothingAtAll) {
  for (const uint64_t size : {uint64_t{0}, uint64_t{100}, 64 * kMiB}) {
    holes_.clear();
    closes_.clear();
    received_.clear();
    server_.reset();
    StartServer();
    MakeFile(size, {});
    EXPECT_EQ(Run(), base::OkStatus());
    EXPECT_TRUE(writes_.empty());
    EXPECT_TRUE(received_ == content_);
    if (size > 0) {
      EXPECT_THAT(holes_, ElementsAre(Part{0, size}));
    }
    EXPECT_EQ(closes_.size(), 1u);
  }
}

TEST_F(PushSender, WhatTheReceiverHasIsNotSent) {
  MakeFile(16 * kMiB, {{0, 10 * kMiB}});
  StartServer();
  open_answer_ = "true";
  received_ = content_;
  received_[3 * kMiB] ^= 1;                       // differs
  received_.replace(4 * kMiB, kMiB, kMiB, '?');   // not there
  received_.replace(12 * kMiB, kMiB, kMiB, 'x');  // no hole
  std::atomic<uint64_t> told{0};
  spec_.on_bytes = [&](uint64_t bytes) { told = bytes; };
  EXPECT_EQ(Run(), base::OkStatus());
  EXPECT_TRUE(received_ == content_);
  std::sort(writes_.begin(), writes_.end());
  EXPECT_EQ(asked_.size(), 5u);
  EXPECT_THAT(writes_,
              ElementsAre(Part{2 * kMiB, 4 * kMiB}, Part{4 * kMiB, 6 * kMiB}));
  EXPECT_THAT(holes_, ElementsAre(Part{10 * kMiB, 16 * kMiB}));
  EXPECT_EQ(told, 16 * kMiB);
}

TEST_F(PushSender, OpenIsTriedUntilTheReceiverIsThere) {
  // Bound, but not listening: refused.
  base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* name = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(::bind(fd.get(), name, length), 0);
  ASSERT_EQ(::getsockname(fd.get(), name, &length), 0);
  spec_.address = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  MakeFile(kMiB, {{0, kMiB}});
  spec_.deadlines.open_retry = milliseconds(300);
  ExpectFailure(base::Code::kUnavailable, "connecting: ", milliseconds(2000));
  spec_.deadlines.open_retry = milliseconds(10'000);
  std::jthread late([&] {
    std::this_thread::sleep_for(milliseconds(300));
    ASSERT_EQ(::listen(fd.get(), 64), 0);
    listener_ = std::move(fd);
    StartServer();
  });
  EXPECT_EQ(Run(), base::OkStatus());
  late.join();
  EXPECT_TRUE(received_ == content_);
}

TEST_F(PushSender, BrokenConnectionsAreTriedAgain) {
  MakeFile(64 * kMiB, {{0, 64 * kMiB}});
  StartServer();
  on_data_ = [](size_t) { std::this_thread::sleep_for(milliseconds(5)); };
  std::jthread pusher([&] {
    const base::Status status = Run();
    EXPECT_TRUE(status.ok()) << status.ToString();
  });
  for (const size_t pieces : {20, 100}) {
    EXPECT_TRUE(Await([&] { return pieces_ > pieces; }));
    server_.reset();  // in the middle of bodies
    StartServer();
  }
  pusher.join();
  EXPECT_TRUE(received_ == content_);
  EXPECT_GT(broken_, 0u);
  EXPECT_EQ(closes_.size(), 1u);
}

TEST_F(PushSender, ReceiverThatVanishes) {
  MakeFile(64 * kMiB, {{0, 64 * kMiB}});
  StartServer();
  std::jthread killer([&] {
    EXPECT_TRUE(Await([&] { return writes_.size() >= 3; }));
    server_.reset();
    listener_.Reset();
  });
  ExpectFailure(base::Code::kUnavailable,
                "the receiver's writeData: ", milliseconds(8000));
}

TEST_F(PushSender, ReceiverThatStopsReading) {
  MakeFile(64 * kMiB, {{0, 64 * kMiB}});
  StartServer();
  spec_.deadlines.stall = milliseconds(500);
  on_data_ = [&](size_t) {
    if (pieces_ > 40) AwaitRelease();
  };
  ExpectFailure(base::Code::kDeadlineExceeded, "no byte moved for 500 ms",
                milliseconds(3000));
  EXPECT_THAT(closes_, ElementsAre(kAborted));
  Release();
}

TEST_F(PushSender, SlowReceiversAreNoStall) {
  MakeFile(8 * kMiB, {{0, 8 * kMiB}});
  // What lies in its kernel's buffers says nothing of its progress.
  const int small = 64 << 10;
  ::setsockopt(listener_.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
  StartServer();
  spec_.deadlines.stall = milliseconds(2000);
  std::mutex one_at_a_time;
  on_data_ = [&](size_t bytes) {
    std::lock_guard lock(one_at_a_time);
    std::this_thread::sleep_for(milliseconds(100) * bytes / (256 << 10));
  };
  const auto begin = steady_clock::now();
  const base::Status status = Run();
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_TRUE(received_ == content_);
  // Four requests at once, each of which took longer than a stall.
  EXPECT_GT(steady_clock::now() - begin, milliseconds(3000));
}

TEST_F(PushSender, StopsPromptly) {
  MakeFile(64 * kMiB, {{0, 64 * kMiB}});
  StartServer();
  on_data_ = [&](size_t) {
    if (pieces_ > 10) AwaitRelease();
  };
  std::jthread stopper([&] {
    EXPECT_TRUE(Await([&] { return pieces_ > 10; }));
    stop_.request_stop();
  });
  const auto begin = steady_clock::now();
  ExpectFailure(base::Code::kCancelled, "stopped", milliseconds(1500));
  EXPECT_LT(steady_clock::now() - begin, milliseconds(15000));
  EXPECT_THAT(closes_, ElementsAre(kAborted));
  Release();
  // Before it begins, too; and while nobody is there.
  server_.reset();
  listener_.Reset();
  ExpectFailure(base::Code::kCancelled, "stopped", milliseconds(1500));
  stop_ = {};
  std::jthread again([&] {
    std::this_thread::sleep_for(milliseconds(200));
    stop_.request_stop();
  });
  ExpectFailure(base::Code::kCancelled, "stopped", milliseconds(1500));
}

TEST_F(PushSender, StopsInTheLimiter) {
  MakeFile(64 * kMiB, {{0, 64 * kMiB}});
  StartServer();
  exec::RateLimiter limiter(1024);
  spec_.limiter = &limiter;
  spec_.deadlines.stall = milliseconds(100);  // does not run there
  std::jthread stopper([&] {
    EXPECT_TRUE(Await([&] { return !opens_.empty(); }));
    std::this_thread::sleep_for(milliseconds(500));
    stop_.request_stop();
  });
  ExpectFailure(base::Code::kCancelled, "stopped", milliseconds(2500));
}

TEST_F(PushSender, FileThatChanges) {
  MakeFile(64 * kMiB, {{0, 64 * kMiB}});
  for (const int last : {0, 5, 32}) {
    closes_.clear();
    server_.reset();
    StartServer();
    int checks = 0;
    spec_.check = [&] {
      return checks++ < last ? base::OkStatus()
                             : base::FailedPreconditionError("it was modified");
    };
    spec_.sha512_hex = std::string(128, 'a');
    ExpectFailure(base::Code::kFailedPrecondition, "it was modified");
    EXPECT_THAT(closes_, ElementsAre(kAborted));
  }
  spec_.check = nullptr;
  closes_.clear();
  ASSERT_EQ(::ftruncate(file_.get(), 64 * kMiB - 100), 0);
  // What lies behind the new end looks like a hole; cut in the middle of the
  // last block it does not.
  ExpectFailure(base::Code::kDataLoss, "became shorter");
  EXPECT_THAT(closes_, ElementsAre(kAborted));
}

TEST_F(PushSender, Refusals) {
  MakeFile(8 * kMiB, {{0, 2 * kMiB}});
  const struct {
    const char* path;
    const char* text;
  } cases[] = {{"/v1-ssync/open", "answered open with status 500: disk full"},
               {"/v1-ssync/writeData", "writeData with status 500: disk full"},
               {"/v1-ssync/sendHole", "sendHole with status 500: disk full"},
               {"/v1-ssync/close", "close with status 500: disk full"}};
  for (const auto& [path, text] : cases) {
    server_.reset();
    intercept_ = [path = path](const Request& request) {
      std::optional<Response> answer;
      if (request.path != path) return answer;
      answer.emplace();
      answer->status = 500;
      answer->body = "disk full\nand\x01more";
      return answer;
    };
    StartServer();
    const base::Status status = Run();
    EXPECT_EQ(status.code(), base::Code::kFailedPrecondition);
    EXPECT_THAT(status.message(), testing::EndsWith(text));
  }
}

TEST_F(PushSender, AnswersThatAreNotOfThisProtocol) {
  MakeFile(kMiB, {{0, kMiB}});
  StartServer();
  for (const char* answer : {"", "maybe", "1", "\"false\""}) {
    open_answer_ = answer;
    ExpectFailure(base::Code::kFailedPrecondition, "expected true or false");
  }
  for (const char* address : {"", "127.0.0.1:1/x", "user@127.0.0.1:1",
                              "127.0.0.1:1?x", "a b:1", "127.0.0.1:x"}) {
    spec_.address = address;
    EXPECT_EQ(Run().code(), base::Code::kInvalidArgument) << address;
  }
}

TEST_F(PushSender, DataIsLimited) {
  MakeFile(64 * kMiB, {{0, 3 * kMiB}});
  StartServer();
  exec::RateLimiter limiter(4 * kMiB);
  spec_.limiter = &limiter;
  const auto begin = steady_clock::now();
  EXPECT_EQ(Run(), base::OkStatus());
  EXPECT_GT(steady_clock::now() - begin, milliseconds(400));
  EXPECT_LT(steady_clock::now() - begin, milliseconds(30000));
  EXPECT_TRUE(received_ == content_);
}

}  // namespace
}  // namespace bim::transfer
