// Client: connections that are kept. ScriptedServer::requests() has the first
// request of each connection, so that its size is the number of connections.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

using HttpClientServer = ServerTest;

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
