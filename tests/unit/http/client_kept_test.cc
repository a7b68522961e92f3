// Client: connections that are kept. ScriptedServer::requests() has the first
// request of each connection, so that its size is the number of connections.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "tests/unit/http/server_fixture.h"

namespace bim::http {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

// Answers every request of every connection with what `answer` says to its
// head; empty: closes the connection.
ScriptedServer::Script Each(
    std::function<std::string(const std::string& request)> answer) {
  return [answer = std::move(answer)](Conn& conn, const std::string& first) {
    for (std::string head = first; !head.empty(); head = conn.ReadHead()) {
      const std::string text = answer(head);
      if (text.empty() || !conn.Send(text)) return;
    }
  };
}

std::string Hello(const std::string&) {
  return "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
}

class HttpClient : public testing::Test {
 protected:
  Outcome GetFrom(const ScriptedServer& server, RecordingSink& sink,
                  const std::string& path = "/image") {
    return client_->Get(DirectRequest(server.Url(path)), sink, {});
  }
  void ExpectHello(const ScriptedServer& server) {
    RecordingSink sink;
    const Outcome outcome = GetFrom(server, sink);
    EXPECT_EQ(outcome.failure, Failure::kNone) << outcome.status.ToString();
    EXPECT_EQ(outcome.body_bytes, 5u);
    EXPECT_EQ(sink.body, "hello");
  }

  const std::unique_ptr<Client> client_ = Client::Make();
};

TEST_F(HttpClient, KeepsTheConnection) {
  ScriptedServer server(Each(Hello));
  for (int i = 0; i < 5; ++i) ExpectHello(server);
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(HttpClient, KeepsItForAllKindsOfWholeBodies) {
  int asked = 0;
  ScriptedServer server(Each([&](const std::string&) -> std::string {
    switch (++asked % 3) {
      case 0:
        return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
      case 1:
        return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
               "5\r\nhello\r\n0\r\n\r\n";
      default:
        return "HTTP/1.1 206 Part\r\nContent-Range: bytes 2-3/9\r\n"
               "Content-Length: 1000000\r\n\r\n" +
               Pattern(1'000'000);
    }
  }));
  const uint64_t sizes[] = {0, 5, 1'000'000};
  for (int i = 1; i <= 6; ++i) {
    GetRequest request = DirectRequest(server.Url());
    request.range_begin = 2;
    RecordingSink sink;
    const Outcome outcome = client_->Get(request, sink, {});
    EXPECT_EQ(outcome.failure, Failure::kNone) << outcome.status.ToString();
    EXPECT_EQ(sink.bytes, sizes[i % 3]);
  }
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(HttpClient, ReplacesAConnectionThatWasClosedMeanwhile) {
  ScriptedServer server(
      [](Conn& conn, const std::string&) { conn.Send(Hello("")); });
  for (int i = 0; i < 4; ++i) ExpectHello(server);
  EXPECT_EQ(server.requests().size(), 4u);
}

TEST_F(HttpClient, ReplacesAConnectionThatBreaksUnderTheNextRequest) {
  for (const bool reset : {false, true}) {
    ScriptedServer server([&](Conn& conn, const std::string&) {
      conn.Send(Hello(""));
      conn.ReadHead();  // the next request, and no answer to it
      if (reset) conn.ResetAtClose();
    });
    for (int i = 0; i < 4; ++i) ExpectHello(server);
    EXPECT_EQ(server.requests().size(), 4u);
  }
}

TEST_F(HttpClient, DoesNotRepeatWhatWasAnsweredInPart) {
  ScriptedServer server([](Conn& conn, const std::string&) {
    conn.Send(Hello(""));
    conn.ReadHead();
    conn.Send("HTTP/1.1 200 OK\r\nContent-Le");
  });
  ExpectHello(server);
  RecordingSink sink;
  const Outcome outcome = GetFrom(server, sink);
  EXPECT_EQ(outcome.failure, Failure::kTransient);
  EXPECT_EQ(outcome.status.code(), base::Code::kUnavailable);
  EXPECT_EQ(server.requests().size(), 1u);
  ExpectHello(server);
}

TEST_F(HttpClient, NoServerAnyMore) {
  auto server = std::make_unique<ScriptedServer>(Each(Hello));
  ExpectHello(*server);
  const GetRequest request = DirectRequest(server->Url());
  server.reset();
  RecordingSink sink;
  const Outcome outcome = client_->Get(request, sink, {});
  EXPECT_EQ(outcome.failure, Failure::kTransient);
  EXPECT_EQ(outcome.status.code(), base::Code::kUnavailable);
}

TEST_F(HttpClient, ShortBodiesAreTransient) {
  ScriptedServer server([](Conn& conn, const std::string&) {
    conn.Send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
  });
  RecordingSink sink;
  const Outcome outcome = GetFrom(server, sink);
  EXPECT_EQ(outcome.failure, Failure::kTransient);
  EXPECT_THAT(outcome.status.message(),
              HasSubstr("ended early: 5 of 10 bytes"));
}

TEST_F(HttpClient, UnclearLengthsAreRefused) {
  for (const char* lines :
       {"Content-Length: -1", "Content-Length: abc", "Content-Length:",
        "Content-Length: 5x", "Content-Length: +5", "Content-Length: 5.0",
        "Content-Length: 99999999999999999999999", "Content-Length: 5,",
        "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5, 6",
        "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: gzip"}) {
    ScriptedServer server([&](Conn& conn, const std::string&) {
      conn.Send(std::string("HTTP/1.1 200 OK\r\n") + lines + "\r\n\r\nhello");
    });
    RecordingSink sink;
    const Outcome outcome = GetFrom(server, sink);
    EXPECT_EQ(outcome.failure, Failure::kPermanent)
        << lines << ": " << outcome.status.ToString();
    EXPECT_FALSE(sink.head.has_value()) << lines;
  }
}

TEST_F(HttpClient, AbandonedBodiesCloseIt) {
  ScriptedServer server(Each([](const std::string& head) -> std::string {
    if (head.starts_with("GET /image ")) return Hello(head);
    return "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" +
           Pattern(1'000'000);
  }));
  ExpectHello(server);
  for (const bool head : {true, false}) {
    RecordingSink sink;
    (head ? sink.head_status : sink.data_status) = base::AbortedError("no");
    const Outcome outcome = GetFrom(server, sink, "/long");
    EXPECT_EQ(outcome.failure, Failure::kRefused);
    EXPECT_EQ(outcome.status, base::AbortedError("no"));
    ExpectHello(server);
  }
  EXPECT_EQ(server.requests().size(), 3u);
}

TEST_F(HttpClient, BodiesWithoutALengthCloseIt) {
  ScriptedServer server([](Conn& conn, const std::string&) {
    conn.Send("HTTP/1.1 200 OK\r\n\r\nhello");
  });
  ExpectHello(server);
  ExpectHello(server);
  EXPECT_EQ(server.requests().size(), 2u);
}

TEST_F(HttpClient, FailuresWithShortBodiesKeepIt) {
  int asked = 0;
  ScriptedServer server(Each([&](const std::string&) -> std::string {
    switch (++asked) {
      case 1:
        return "HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nsorry";
      case 2:
        return "HTTP/1.1 416 No\r\nContent-Length: 0\r\n\r\n";
      case 3:
        return "HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 16384\r\n"
               "\r\n" +
               Pattern(16384);
      default:
        return "HTTP/1.1 500 No\r\nContent-Length: 16385\r\n\r\n" +
               Pattern(16385);
    }
  }));
  for (const int status : {404, 416, 503, 500, 500}) {
    RecordingSink sink;
    const Outcome outcome = GetFrom(server, sink);
    EXPECT_EQ(outcome.http_status, status);
    EXPECT_NE(outcome.failure, Failure::kNone);
    EXPECT_THAT(outcome.status.message(),
                HasSubstr("status " + std::to_string(status)));
    EXPECT_EQ(outcome.retry_after.has_value(), status == 503);
    EXPECT_EQ(outcome.body_bytes, 0u);
    EXPECT_FALSE(sink.head.has_value());
  }
  EXPECT_EQ(server.requests().size(), 2u);
}

TEST_F(HttpClient, BodyOfAFailureThatNeverComes) {
  ScriptedServer server([](Conn& conn, const std::string&) {
    conn.Send("HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nso");
    conn.AwaitClose();
  });
  for (int i = 0; i < 2; ++i) {
    RecordingSink sink;
    EXPECT_EQ(GetFrom(server, sink).status.code(), base::Code::kNotFound);
  }
  EXPECT_EQ(server.requests().size(), 2u);
}

TEST_F(HttpClient, RedirectsKeepBothConnections) {
  ScriptedServer second(Each(Hello));
  ScriptedServer first(Each([&](const std::string&) {
    return "HTTP/1.1 302 Found\r\nLocation: " + second.Url() +
           "\r\nContent-Length: 4\r\n\r\nhere";
  }));
  for (int i = 0; i < 3; ++i) {
    GetRequest request = DirectRequest(first.Url());
    request.headers = {"X-Token: SECRET"};
    RecordingSink sink;
    const Outcome outcome = client_->Get(request, sink, {});
    EXPECT_EQ(outcome.failure, Failure::kNone) << outcome.status.ToString();
    EXPECT_EQ(sink.body, "hello");
  }
  ASSERT_EQ(first.requests().size(), 1u);
  ASSERT_EQ(second.requests().size(), 1u);
  EXPECT_THAT(first.requests()[0], HasSubstr("X-Token"));
  EXPECT_THAT(second.requests()[0], testing::Not(HasSubstr("X-Token")));
}

TEST_F(HttpClient, TooManyRedirects) {
  ScriptedServer server(Each([](const std::string&) {
    return "HTTP/1.1 302 Found\r\nLocation: /on\r\nContent-Length: 0\r\n\r\n";
  }));
  RecordingSink sink;
  const Outcome outcome = GetFrom(server, sink);
  EXPECT_EQ(outcome.failure, Failure::kPermanent);
  EXPECT_THAT(outcome.status.message(), HasSubstr("more than 10 redirects"));
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(HttpClient, DeadlinesOnAKeptConnection) {
  ScriptedServer server([](Conn& conn, const std::string& first) {
    for (std::string head = first; !head.empty(); head = conn.ReadHead()) {
      if (head.starts_with("GET /image ")) {
        conn.Send(Hello(head));
      } else if (head.starts_with("GET /stall ")) {
        conn.Send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
      }
    }
  });
  for (const auto& [path, text] :
       {std::pair{"/silent", "waiting for an answer: no complete answer"},
        {"/stall", "stalled: no byte of the body came for 200 ms (5 of 10"}}) {
    ExpectHello(server);
    GetRequest request = DirectRequest(server.Url(path));
    request.deadlines.first_byte = milliseconds(200);
    request.deadlines.stall = milliseconds(200);
    RecordingSink sink;
    const Outcome outcome = client_->Get(request, sink, {});
    EXPECT_EQ(outcome.failure, Failure::kTransient);
    EXPECT_EQ(outcome.status.code(), base::Code::kDeadlineExceeded);
    EXPECT_THAT(outcome.status.message(), HasSubstr(text));
  }
  ExpectHello(server);
  EXPECT_EQ(server.requests().size(), 3u);
}

TEST_F(HttpClient, StopsAndGoesOn) {
  std::stop_source stop;
  ScriptedServer server([&](Conn& conn, const std::string& first) {
    for (std::string head = first; !head.empty(); head = conn.ReadHead()) {
      if (head.starts_with("GET /image ")) {
        conn.Send(Hello(head));
      } else {
        stop.request_stop();
      }
    }
  });
  ExpectHello(server);
  RecordingSink sink;
  EXPECT_EQ(
      client_->Get(DirectRequest(server.Url("/stop")), sink, stop.get_token())
          .failure,
      Failure::kCancelled);
  ExpectHello(server);
  EXPECT_EQ(server.requests().size(), 2u);
}

TEST_F(HttpClient, BadRequestsLeaveItAlone) {
  ScriptedServer server(Each(Hello));
  ExpectHello(server);
  GetRequest request = DirectRequest("ftp://host/x");
  RecordingSink sink;
  EXPECT_EQ(client_->Get(request, sink, {}).status.code(),
            base::Code::kInvalidArgument);
  ExpectHello(server);
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(HttpClient, ManyClients) {
  ScriptedServer one(Each(Hello));
  std::vector<std::jthread> threads;
  std::vector<std::unique_ptr<ScriptedServer>> servers;
  for (int i = 0; i < 6; ++i)
    servers.push_back(std::make_unique<ScriptedServer>(Each(Hello)));
  for (const auto& server : servers) {
    threads.emplace_back([&server] {
      const std::unique_ptr<Client> client = Client::Make();
      for (int j = 0; j < 50; ++j) {
        RecordingSink sink;
        EXPECT_EQ(client->Get(DirectRequest(server->Url()), sink, {}).failure,
                  Failure::kNone);
      }
    });
  }
  threads.clear();
  for (const auto& server : servers) EXPECT_EQ(server->requests().size(), 1u);
}

// ------------------------------------------------------------- Send()

base::Result<size_t> NoBody(std::span<std::byte>) {
  ADD_FAILURE() << "the body was asked for";
  return size_t{0};
}

BodyReader Reader(const std::string& text) {
  return [&text, at = size_t{0}](
             std::span<std::byte> buffer) mutable -> base::Result<size_t> {
    const size_t size = std::min(buffer.size(), text.size() - at);
    std::memcpy(buffer.data(), text.data() + at, size);
    at += size;
    return size;
  };
}

// Reads the bodies, too.
ScriptedServer::Script EachWithBody(
    std::function<std::string(const std::string& head, const std::string& body)>
        answer) {
  return [answer = std::move(answer)](Conn& conn, const std::string& first) {
    for (std::string head = first; !head.empty(); head = conn.ReadHead()) {
      size_t size = 0;
      const std::string name = "Content-Length: ";
      if (const size_t at = head.find(name); at != std::string::npos)
        size = std::stoul(head.substr(at + name.size()));
      const std::string body = conn.ReadBytes(size);
      if (body.size() != size) return;
      const std::string text = answer(head, body);
      if (text.empty() || !conn.Send(text)) return;
    }
  };
}

class HttpClientSend : public HttpClient {
 protected:
  // `body`, not empty, outlives it.
  PutRequest RequestTo(const ScriptedServer& server, const std::string& method,
                       std::string_view body = "") {
    PutRequest request;
    request.url = server.Url("/image");
    request.method = method;
    if (!body.empty()) request.bytes = std::as_bytes(std::span(body));
    return request;
  }
  PutResult Send(const PutRequest& request, const BodyReader& body = NoBody) {
    return client_->Send(request, body, {});
  }
  static void ExpectAnswer(const PutResult& result, const std::string& body) {
    EXPECT_EQ(result.outcome.failure, Failure::kNone)
        << result.outcome.status.ToString();
    EXPECT_EQ(result.status, 200);
    EXPECT_EQ(result.body, body);
  }
  static void ExpectTransient(const PutResult& result) {
    EXPECT_EQ(result.outcome.failure, Failure::kTransient);
    EXPECT_EQ(result.outcome.status.code(), base::Code::kUnavailable)
        << result.outcome.status.ToString();
  }
};

TEST_F(HttpClientSend, KeepsTheConnection) {
  std::vector<std::string> bodies;
  std::vector<std::string> methods;
  ScriptedServer server(
      EachWithBody([&](const std::string& head, const std::string& body) {
        bodies.push_back(body);
        methods.push_back(head.substr(0, head.find(' ')));
        return head.starts_with("HEAD")
                   ? "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
                   : Hello(head);
      }));
  const std::string body = Pattern(3'000'000);
  const std::string all[] = {"GET", "HEAD", "DELETE", "PUT", "PATCH", "POST"};
  for (int round = 0; round < 2; ++round) {
    for (const std::string& method : all) {
      const PutRequest request = RequestTo(server, method);
      if (method == "GET" || method == "HEAD" || method == "DELETE") {
        ExpectAnswer(Send(request), method == "HEAD" ? "" : "hello");
        bodies.pop_back();
        continue;
      }
      PutRequest sized = request;
      sized.content_length = body.size();
      ExpectAnswer(Send(sized, Reader(body)), "hello");
      ExpectAnswer(Send(RequestTo(server, method, body)), "hello");
      sized.content_length = 0;
      ExpectAnswer(Send(sized), "hello");
    }
    ExpectHello(server);  // by Get(), over the same one
    bodies.pop_back();
  }
  ASSERT_EQ(bodies.size(), 18u);
  for (size_t i = 0; i < bodies.size(); ++i)
    EXPECT_TRUE(bodies[i] == (i % 3 == 2 ? "" : body)) << i;
  EXPECT_EQ(methods.size(), 26u);
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(HttpClientSend, AllKindsOfAnswersKeepIt) {
  int asked = 0;
  ScriptedServer server(Each([&](const std::string&) -> std::string {
    switch (++asked % 5) {
      case 0:
        return "HTTP/1.1 204 None\r\n\r\n";
      case 1:
        return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
               "5\r\nhello\r\n0\r\n\r\n";
      case 2:
        return "HTTP/1.1 302 Go\r\nLocation: /there\r\n"
               "Content-Length: 5\r\n\r\nhello";
      case 3:
        return "HTTP/1.1 500 No\r\nContent-Length: 65536\r\n\r\n" +
               Pattern(65536);
      default:
        return "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n";
    }
  }));
  for (const int status : {200, 302, 500, 404, 204, 200}) {
    PutRequest request = RequestTo(server, "POST");
    request.content_length = 0;
    const PutResult result = Send(request);
    EXPECT_EQ(result.outcome.failure, Failure::kNone)
        << result.outcome.status.ToString();
    EXPECT_EQ(result.status, status);
  }
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(HttpClientSend, SomeAnswersCloseIt) {
  const std::string lines = "HTTP/1.1 200 OK\r\nContent-Length: ";
  const std::pair<std::string, size_t> cases[] = {
      {"HTTP/1.1 200 OK\r\n\r\nhello", 5},
      {lines + "65537\r\n\r\n" + Pattern(65537), 65536},
      {lines + "5\r\nConnection: close\r\n\r\nhello", 5}};
  for (const auto& [answer, size] : cases) {
    ScriptedServer server(answer);
    for (int i = 0; i < 2; ++i) {
      const PutResult result = Send(RequestTo(server, "GET"));
      EXPECT_EQ(result.outcome.failure, Failure::kNone)
          << result.outcome.status.ToString();
      EXPECT_EQ(result.body.size(), size);
    }
    EXPECT_EQ(server.requests().size(), 2u);
  }
}

// Answers the first request of each connection, and breaks it under the second,
// of whose body it has read `read` bytes.
ScriptedServer::Script BreaksUnderTheSecond(size_t read, bool reset) {
  return [read, reset](Conn& conn, const std::string& head) {
    if (head.find("Content-Length: 3000000\r\n") != std::string::npos)
      conn.ReadBytes(3'000'000);
    conn.Send(Hello(""));
    conn.ReadHead();
    conn.ReadBytes(read);
    if (reset) conn.ResetAtClose();
  };
}

TEST_F(HttpClientSend, ReplacesAConnectionThatBreaks) {
  const std::string body = Pattern(3'000'000);
  for (const std::string method : {"GET", "DELETE", "PUT", "POST"}) {
    for (const bool reset : {false, true}) {
      for (const size_t read : {0, 1, 1'000'000}) {
        const bool has_body = method == "PUT" || method == "POST";
        if (!has_body && read > 0) continue;
        ScriptedServer server(BreaksUnderTheSecond(read, reset));
        PutRequest request =
            RequestTo(server, method,
                      has_body ? std::string_view(body) : std::string_view());
        request.repeatable = true;
        for (int i = 0; i < 4; ++i) ExpectAnswer(Send(request), "hello");
        EXPECT_EQ(server.requests().size(), 4u);
      }
    }
  }
}

TEST_F(HttpClientSend, WhatMayNotBeRepeatedFails) {
  const std::string body = Pattern(3'000'000);
  for (const bool reader : {false, true}) {
    for (const bool reset : {false, true}) {
      for (const size_t read : {1, 1'000'000}) {
        ScriptedServer server(BreaksUnderTheSecond(read, reset));
        PutRequest request =
            RequestTo(server, reader ? "PUT" : "POST",
                      reader ? std::string_view() : std::string_view(body));
        request.content_length = body.size();
        for (int i = 1; i < 4; ++i) {
          ExpectAnswer(Send(request, Reader(body)), "hello");
          ExpectTransient(Send(request, Reader(body)));
          // libcurl may connect again, in vain.
          const std::vector<std::string> requests = server.requests();
          EXPECT_EQ(
              std::ranges::count_if(
                  requests, [](const auto& head) { return !head.empty(); }),
              i);
        }
      }
    }
  }
}

TEST_F(HttpClientSend, DoesNotRepeatWhatWasAnsweredInPart) {
  ScriptedServer server([](Conn& conn, const std::string&) {
    conn.Send(Hello(""));
    conn.ReadHead();
    conn.Send("HTTP/1.1 200 OK\r\nContent-Le");
  });
  ExpectAnswer(Send(RequestTo(server, "GET")), "hello");
  ExpectTransient(Send(RequestTo(server, "GET")));
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(HttpClientSend, NewConnectionsAreNotRepeated) {
  ScriptedServer server([](Conn& conn, const std::string&) {
    conn.ReadBytes(1000);
    conn.ResetAtClose();
  });
  const std::string body = Pattern(3'000'000);
  ExpectTransient(Send(RequestTo(server, "PUT", body)));
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(HttpClientSend, NoServerAnyMore) {
  auto server = std::make_unique<ScriptedServer>(Each(Hello));
  const PutRequest request = RequestTo(*server, "GET");
  ExpectAnswer(Send(request), "hello");
  server.reset();
  ExpectTransient(Send(request));
}

TEST_F(HttpClientSend, AnswersBeforeTheBodyWasSent) {
  ScriptedServer server([](Conn& conn, const std::string& head) {
    if (head.starts_with("PUT")) conn.ReadBytes(1000);
    conn.Send(Hello(""));
    conn.AwaitClose();
  });
  const std::string body = Pattern(30'000'000);
  for (const bool whole : {true, false}) {
    PutRequest request = RequestTo(
        server, "PUT", whole ? std::string_view(body) : std::string_view());
    if (!whole) request.content_length = 1ull << 40;
    const auto begin = std::chrono::steady_clock::now();
    ExpectAnswer(Send(request,
                      [](std::span<std::byte> buffer) -> base::Result<size_t> {
                        return buffer.size();
                      }),
                 "hello");
    EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(5000));
  }
  ExpectAnswer(Send(RequestTo(server, "GET")), "hello");
  EXPECT_EQ(server.requests().size(), 3u);
}

TEST_F(HttpClientSend, WhatTheServerDoesNotTakeIsAStall) {
  // All of it is in the kernel's buffers.
  ScriptedServer server([](Conn& conn, const std::string&) {
    pollfd closed{conn.fd(), POLLRDHUP, 0};
    ::poll(&closed, 1, 10'000);
  });
  const std::string body = Pattern(100'000);
  PutRequest request = RequestTo(server, "PUT", body);
  request.deadlines.first_byte = milliseconds(300);
  const PutResult result = Send(request);
  EXPECT_EQ(result.outcome.failure, Failure::kTransient);
  EXPECT_EQ(result.outcome.status.code(), base::Code::kDeadlineExceeded);
}

TEST_F(HttpClientSend, SlowServersAreNoStall) {
  // 2 MiB, in steps, longer than the deadlines.
  ScriptedServer server([](Conn& conn, const std::string&) {
    const int small = 32 << 10;
    ::setsockopt(conn.fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    for (int i = 0; i < 16; ++i) {
      std::this_thread::sleep_for(milliseconds(100));
      conn.ReadBytes(128 << 10);
    }
    conn.Send(Hello(""));
  });
  const std::string body = Pattern(2 << 20);
  PutRequest request = RequestTo(server, "PUT", body);
  request.deadlines.first_byte = milliseconds(900);
  request.deadlines.stall = milliseconds(900);
  request.deadlines.min_rate = 0;
  ExpectAnswer(Send(request), "hello");
}

TEST_F(HttpClientSend, StopsAndGoesOn) {
  std::stop_source stop;
  ScriptedServer server([&](Conn& conn, const std::string& first) {
    for (std::string head = first; !head.empty(); head = conn.ReadHead()) {
      if (head.starts_with("GET ")) {
        conn.Send(Hello(head));
      } else {
        conn.ReadBytes(5);
        stop.request_stop();
      }
    }
  });
  ExpectAnswer(Send(RequestTo(server, "GET")), "hello");
  const std::string body = Pattern(5);
  EXPECT_EQ(client_->Send(RequestTo(server, "PUT", body), {}, stop.get_token())
                .outcome.failure,
            Failure::kCancelled);
  ExpectAnswer(Send(RequestTo(server, "GET")), "hello");
  EXPECT_EQ(server.requests().size(), 2u);
}

using HttpClientServer = ServerTest;

TEST_F(HttpClientServer, ManyBodiesOverOneConnection) {
  class Taker : public BodyTaker {
   public:
    explicit Taker(std::string& body) : body_(body) {}
    base::Status OnData(std::span<const std::byte> data) override {
      body_.append(reinterpret_cast<const char*>(data.data()), data.size());
      return base::OkStatus();
    }
    Response Finish(const base::Status& status) override {
      Response response;
      response.status = status.ok() ? 200 : 500;
      return response;
    }

   private:
    std::string& body_;
  };
  std::string got;
  std::atomic<int> answered{0};
  Start(
      [&](const Request& request) {
        ++answered;
        Response response;
        if (request.method == "POST")
          response.taker = std::make_unique<Taker>(got);
        return response;
      },
      {.max_connections = 1});
  const std::unique_ptr<Client> client = Client::Make();
  const std::string content = Pattern(5 << 20);
  std::string sent;
  for (size_t size = 1; size < content.size(); size *= 3) {
    PutRequest request;
    request.url = Url("/");
    request.method = "POST";
    request.bytes = std::as_bytes(std::span(content).first(size));
    EXPECT_EQ(client->Send(request, {}, {}).status, 200);
    sent += content.substr(0, size);
    request.bytes.reset();
    request.method = "DELETE";
    EXPECT_EQ(client->Send(request, {}, {}).status, 200);
  }
  EXPECT_TRUE(got == sent);
}

TEST_F(HttpClientServer, PartsOfAFileOverOneConnection) {
  const std::string content = Pattern(4 << 20);
  Start([&](const Request&) {
    Response response;
    response.file = FileOf(content);
    response.file_size = content.size();
    return response;
  });
  const std::unique_ptr<Client> client = Client::Make();
  constexpr uint64_t kStep = 300'000;
  for (uint64_t begin = 0; begin < content.size(); begin += kStep) {
    GetRequest request = DirectRequest(Url("/"));
    request.range_begin = begin;
    request.range_end = std::min<uint64_t>(begin + kStep, content.size());
    RecordingSink sink;
    const Outcome outcome = client->Get(request, sink, {});
    EXPECT_EQ(outcome.failure, Failure::kNone) << outcome.status.ToString();
    EXPECT_TRUE(sink.body == content.substr(begin, kStep));
  }
}

}  // namespace
}  // namespace bim::http
