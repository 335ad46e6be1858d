"""Entry point `report`: compares the finished runs with the article, table by table and claim by claim."""
