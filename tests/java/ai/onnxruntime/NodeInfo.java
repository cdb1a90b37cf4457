package ai.onnxruntime;

public class NodeInfo {
    private final Object info;

    NodeInfo(Object info) {
        this.info = info;
    }

    public Object getInfo() {
        return info;
    }
}
